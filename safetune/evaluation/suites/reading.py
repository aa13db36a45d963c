"""Suites that a YAML file describes: which columns of a user's file hold prompts, seeds and categories."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from safetune.evaluation.suites.cells import Cell, Kind, Suite
from safetune.prompts import read_prompts
from safetune.prompts.layouts import did_you_mean

SUITES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.yaml")))
"""Names of the suites that read a file; TinySD's own is made by tinysd_suite."""


@dataclass(frozen=True)
class SuiteFile:
    """A suite's YAML file."""

    version: int
    kind: Kind
    source: str
    """Paper, and where the prompts are had."""
    layout: str = "plain"
    """See safetune.prompts."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of the file by field, where it is not the layout's."""


def describe_suite(name: str) -> SuiteFile:
    """The description of a suite; ValueError for a name that is not one."""
    if name not in SUITES:
        raise ValueError(
            f"no suite {name!r}{did_you_mean(name, list(SUITES))}; allowed: tinysd, {', '.join(SUITES)}"
        )
    return SuiteFile(**yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")))


def read_suite(
    name: str, file: Path | None, columns: Mapping[str, str] | None = None, count: int | None = None
) -> Suite:
    """The first `count` prompts of a file (all by default) in the layout of the suite `name`, as one cell.

    `columns` names columns that differ from the suite's: {"prompt": "text"}. The CSV, JSON lines or parquet
    file is the user's: these prompts are not ours to give away. Raises ValueError for a suite that is not
    known, a missing file, and as read_prompts.
    """
    suite = describe_suite(name)
    if file is None:
        raise ValueError(f"suite {name!r} needs its prompts: give --prompts-file FILE. {suite.source}")
    table = read_prompts(file, suite.layout, {**suite.columns, **(columns or {})})
    rows = table.rows[:count]
    cell = Cell(
        name,
        suite.kind,
        tuple(row.prompt for row in rows),
        tuple(row.category for row in rows),
        tuple(row.seed for row in rows),
    )
    return Suite(name, suite.version, (cell,))
