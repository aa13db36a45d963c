"""The HTML report of a run, and the picture for a README. The only package that writes HTML."""

from safetune.reporting.grid import GridRow, before_after_picture
from safetune.reporting.pool import PoolScores
from safetune.reporting.report import write_report

__all__ = ["GridRow", "PoolScores", "before_after_picture", "write_report"]
