"""The pictures that a prompt file asks for: each with its text, its seed and the row's other columns."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetune.prompts import PromptRow, ReadSummary, read_prompts
from safetune.prompts.layouts import LAYOUTS
from safetune.prompts.reader import DEFECTS, read_rows
from safetune.prompts.records import Record, read_records

logger = logging.getLogger(__name__)

OWN_COLUMNS = ("file_name", "image", "text", "seed", "model")
"""Columns of a generated set; those of the prompt file that have these names do not come along."""


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    number: int
    """Place among all pictures of the run, from 0."""
    text: str
    seed: int
    columns: dict[str, object]
    """Other cells of the prompt's row; every job has the same columns."""


def read_jobs(
    path: Path, column: str = "prompt", layout: str = "plain", seed: int = 0, copies: int = 1
) -> list[Job]:
    """`copies` pictures of each prompt of a .txt, .csv, .jsonl or .parquet file, in the file's order.

    A prompt file's own seed is that of its first picture. Prompts that name an age in a sexual context are
    dropped, as read_prompts does. Raises ValueError when the file or a column is not there, and when no
    prompt is left.
    """
    if path.suffix.lower() == ".txt":
        if layout != "plain":
            raise ValueError(
                f"{path} has no columns for layout {layout!r}: give the .csv, .jsonl or .parquet"
            )
        rows, cells = read_lines(path), {}
    else:
        given = {} if column == LAYOUTS[layout].columns["prompt"] else {"prompt": column}
        rows = read_prompts(path, layout, given).rows
        cells = {record.number: record.cells for record in read_records(path)[1]}
    own = {*OWN_COLUMNS, column}
    names = list(dict.fromkeys(name for row in cells.values() for name in row if name not in own))
    jobs: list[Job] = []
    drawn: Counter[tuple[int | None, str]] = Counter()
    for row in rows:
        columns = {name: plain(cells[row.number].get(name)) for name in names}
        for _ in range(copies):
            # A prompt that comes twice goes on counting: the same picture twice would be of no use.
            copy = drawn[row.seed, row.prompt]
            drawn[row.seed, row.prompt] += 1
            jobs.append(Job(len(jobs), row.prompt, job_seed(row, seed, copy), columns))
    return jobs


def read_lines(path: Path) -> tuple[PromptRow, ...]:
    """The prompts of a text file, one a line. Raises ValueError when none is left."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    records = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            records.append(Record(number, {"prompt": line.decode("utf-8")}))
        except UnicodeDecodeError:
            records.append(Record(number, {}, "encoding"))
    defects: dict[str, list[int]] = {name: [] for name in DEFECTS}
    rows = read_rows(path, records, {"prompt": "prompt"}, LAYOUTS["plain"], defects)
    summary = ReadSummary(
        len(records), len(rows), **{name: tuple(numbers) for name, numbers in defects.items()}
    )
    if not rows:
        raise ValueError(f"{path}: no prompt is left: {summary}")
    logger.info("%s: %s", path.name, summary)
    return tuple(rows)


def job_seed(row: PromptRow, seed: int, copy: int) -> int:
    """The row's own seed for its first picture; else a number that comes from seed, text and copy alone."""
    if row.seed is not None and copy == 0:
        return row.seed
    words = json.dumps([seed if row.seed is None else row.seed, row.prompt, copy])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big")


def plain(cell: object) -> object:
    """A cell as JSON can hold it: no NaN, no bytes that are not UTF-8, dates and the like as text."""
    if cell is None or cell != cell:
        return None
    if isinstance(cell, str):
        return cell.encode("utf-8", "replace").decode()
    return cell if isinstance(cell, bool | int | float | list | dict) else str(cell)


def chunks(jobs: Sequence[Job], size: int) -> list[Sequence[Job]]:
    """The jobs in runs of `size`."""
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]
