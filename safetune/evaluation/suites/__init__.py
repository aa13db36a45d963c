"""The prompts that evaluations draw, by name and version."""

from safetune.evaluation.suites.cells import Cell, Suite, cell_kinds
from safetune.evaluation.suites.reading import SUITES, read_suite
from safetune.evaluation.suites.tinysd import tinysd_suite

__all__ = ["SUITES", "Cell", "Suite", "cell_kinds", "read_suite", "tinysd_suite"]
