"""Rows of CSV, JSONL and parquet files as they are, with the defects of each; read without guessing.

The standard csv and json modules rather than pandas: a byte that is not UTF-8 or a row with a cell too many
must cost its own row and be counted, and cells keep their spelling.
"""

import csv
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Record:
    """One row: its number (from 1, header not counted) and cells by column, or what is wrong with it."""

    number: int
    cells: dict[str, object]
    defect: str = ""
    """ "", "empty", "malformed" or "encoding"."""


def read_records(path: Path) -> tuple[list[str], list[Record]]:
    """Column names and rows of a file. Raises ValueError when it cannot be read at all."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: prompts are read from {', '.join(FORMATS)} files, got {path.suffix!r}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path} is UTF-16: save it as UTF-8")
    return read_csv(path) if path.suffix.lower() == ".csv" else read_jsonl(path)


def read_csv(path: Path) -> tuple[list[str], list[Record]]:
    """Comma-separated values with a header, quotes as RFC 4180 has them."""
    # surrogateescape lets bytes that are not UTF-8 through, marked, so that only their rows are lost.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            repeated = sorted({position for position, name in enumerate(header) if name in header[:position]})
            if repeated:
                raise ValueError(
                    f"{path}: column {repeated[0] + 1} has the name of an earlier one; rename it"
                )
            records = [csv_record(number, row, header) for number, row in enumerate(reader, start=1)]
        except csv.Error as mistake:
            raise ValueError(f"{path}: not CSV, line {reader.line_num}: {mistake}") from None
    return header, records


def csv_record(number: int, row: list[str], header: list[str]) -> Record:
    """A row of cells by column; a blank line is empty."""
    if not row:
        return Record(number, {}, "empty")
    if len(row) != len(header):
        return Record(number, {}, "malformed")
    return Record(number, dict(zip(header, row, strict=True)))


def read_jsonl(path: Path) -> tuple[list[str], list[Record]]:
    """One JSON object per line; the columns are the keys of all of them."""
    with path.open("rb") as file:
        records = [jsonl_record(number, line) for number, line in enumerate(file, start=1)]
    return list(dict.fromkeys(name for record in records for name in record.cells)), records


def jsonl_record(number: int, line: bytes) -> Record:
    """The object of a line."""
    if not line.strip():
        return Record(number, {}, "empty")
    try:
        cells = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Record(number, {}, "encoding")
    except (ValueError, RecursionError):  # numbers of thousands of digits are plain ValueErrors
        return Record(number, {}, "malformed")
    return Record(number, cells) if isinstance(cells, dict) else Record(number, {}, "malformed")


def read_parquet(path: Path) -> tuple[list[str], list[Record]]:
    """A parquet file; nested columns, such as pictures, are named but not read."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        file = parquet.ParquetFile(path)
        names: list[str] = list(file.schema_arrow.names)
        nested = {field.name for field in file.schema_arrow if types.is_nested(field.type)}
        table = file.read(columns=[name for name in names if name not in nested])
    except (pyarrow.ArrowException, OSError):
        raise ValueError(f"{path}: not a parquet file that can be read") from None
    columns = {name: list(scalars(table[name])) for name in table.column_names}
    return names, [
        Record(row + 1, {name: cells[row] for name, cells in columns.items()})
        for row in range(table.num_rows)
    ]


def scalars(column: Collection[object]) -> Iterator[object]:
    """Values of an arrow column; text that is not UTF-8 comes with its bytes marked, as from a CSV file."""
    for value in column:
        try:
            yield value.as_py()  # type: ignore[attr-defined]
        except UnicodeDecodeError:
            yield "\udcff"
