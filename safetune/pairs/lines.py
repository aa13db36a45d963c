"""Files of lines, read one by one: a broken line costs itself and nothing else."""

import csv
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import count, islice
from pathlib import Path

from safetune.pairs.keys import clean_key, listed
from safetune.pairs.records import Record, Wanted, files_fingerprint

LONGEST_LINE = 2**20
"""Bytes of a line at most, its end not counted."""
TOO_LONG = f"line is longer than {LONGEST_LINE} bytes"

LOOKED_AT = 100
"""Rows that are searched for a column before it counts as missing."""


class PromptFile:
    """Prompts alone: .txt with one on each line, .csv with a header, or .jsonl."""

    def __init__(self, path: Path, wanted: Wanted):
        self.path, self.wanted = path, wanted
        refuse_unreadable(path)
        self.plain = path.suffix.lower() == ".txt"
        if self.plain and wanted.key_column:
            raise ValueError(
                f"{path} is plain text without columns: leave out the key column {wanted.key_column!r}"
            )
        if not self.plain:
            check_columns(path, [wanted.text_column, wanted.key_column], self.cells())

    @property
    def fingerprint(self) -> str:
        return files_fingerprint(self.path.parent, [self.path])

    @cached_property
    def length(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Record]:
        if self.plain:
            for row, (_, line) in enumerate(lines_of(self.path)):
                defect = "" if line is not None else TOO_LONG
                yield Record(row, str(row), line, None, defect)
            return
        for row, (_, cells) in enumerate(self.cells()):
            yield record_of(row, cells, self.wanted, str(row))

    def cells(self) -> Iterator[tuple[int, dict[str, object] | str]]:
        return csv_rows(self.path) if self.path.suffix.lower() == ".csv" else objects_of(self.path)


def record_of(row: int, cells: dict[str, object] | str, wanted: Wanted, key: str) -> Record:
    """The text and key of a row's cells; `key` is its key where no column is named. No picture yet."""
    if isinstance(cells, str):
        return Record(row, key, None, None, cells)
    if wanted.key_column:
        named = cells.get(wanted.key_column)
        if isinstance(named, bool) or not isinstance(named, str | int) or named == "":
            return Record(row, key, None, None, "key is missing, or neither text nor a whole number")
        key = clean_key(str(named))
    text = cells.get(wanted.text_column) if wanted.text else None
    if text is not None and not isinstance(text, str):
        return Record(row, key, None, None, "caption is not text")
    return Record(row, key, text, None)


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number (from 1) and bytes of each line without its end; None for one that is too long."""
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            whole = line
            while len(whole) > LONGEST_LINE and not whole.endswith(b"\n"):
                whole = file.readline(LONGEST_LINE + 1)
            if whole is not line:
                yield number, None
            else:
                yield number, line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\r\n")


def objects_of(path: Path) -> Iterator[tuple[int, dict[str, object] | str]]:
    """Number and JSON object of each line, or what is wrong with it; blank lines are no rows."""
    for number, line in lines_of(path):
        if line is None or line.strip():
            yield number, TOO_LONG if line is None else parse_object(line)


def parse_object(line: bytes) -> dict[str, object] | str:
    """A JSON object, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "line is not UTF-8"
    except (ValueError, RecursionError):  # ValueError: numbers of thousands of digits too
        return "line is not JSON"
    return value if isinstance(value, dict) else "line is not a JSON object"


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, object] | str]]:
    """Number and cells of each row below the header, or what is wrong with it; blank lines are no rows."""
    # surrogateescape lets bytes that are not UTF-8 through, marked, so that only their cells are lost.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as mistake:
            raise ValueError(f"{path}: the header is not CSV: {mistake}") from None
        for number in count(1):
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield number, "row is not CSV"
                continue
            if len(row) == len(header):
                yield number, dict(zip(header, row, strict=True))
            elif row:
                yield number, f"row has {len(row)} cells, the header {len(header)}"


def check_columns(
    path: Path, columns: Iterable[str | None], rows: Iterator[tuple[int, dict[str, object] | str]]
) -> None:
    """ValueError when none of the first rows has one of the columns, or when there is no row."""
    cells = [row for _, row in islice(rows, LOOKED_AT)]
    found = dict.fromkeys(name for row in cells if isinstance(row, dict) for name in row)
    if not cells:
        raise ValueError(f"{path} has no rows")
    for column in columns:
        if column is not None and column not in found:
            raise ValueError(f"{path} has no column {column!r}; its columns: {listed(found)}")


def refuse_unreadable(path: Path) -> None:
    """ValueError for a file that says it is UTF-16, and for an empty one."""
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16: save it as UTF-8")
    if not start:
        raise ValueError(f"{path} is empty")
