"""Parquet files and arrow tables, batch by batch: nothing decoded, not even text."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
from pyarrow import ArrowException, compute, types
from pyarrow.parquet import ParquetFile

from safetune.pairs.folders import inside
from safetune.pairs.keys import clean_key, listed
from safetune.pairs.records import Record, Wanted, files_fingerprint

BATCH_ROWS = 32
"""Rows in memory at a time; each may hold a picture of megabytes."""

UNREADABLE = (ArrowException, OSError, UnicodeDecodeError)
"""What arrow raises for damaged files; the last one for names of columns."""

DAMAGED = "parquet file is damaged or cut short: its rows from here on are lost"


class ParquetFiles:
    """One parquet file after the other; text, and pictures as {bytes, path}, bytes, or names of files."""

    def __init__(self, root: Path, files: Sequence[Path], wanted: Wanted):
        self.root, self.files, self.wanted = root, files, wanted
        schema = next((found for found in map(schema_of, files) if found is not None), None)
        if schema is None:
            damaged = listed(file.name for file in files)
            raise ValueError(f"{root} has no parquet file that can be read; damaged: {damaged}")
        check_schema(str(root), schema, wanted)

    @cached_property
    def fingerprint(self) -> str:
        return files_fingerprint(self.root, self.files)

    @cached_property
    def length(self) -> int:
        return sum(rows_of(file) for file in self.files)

    def __iter__(self) -> Iterator[Record]:
        row = 0
        for file in self.files:
            defect = ""
            try:
                for batch in batches_of(file, self.wanted):
                    yield from records_of(batch, row, self.wanted, partial(inside, self.root))
                    row += batch.num_rows
            except UNREADABLE:
                defect = DAMAGED
            except ValueError as mistake:  # another schema than the first file's
                defect = str(mistake)
            if defect:
                yield Record(row, clean_key(file.relative_to(self.root).as_posix()), None, None, defect)
                row += 1


def schema_of(file: Path) -> pa.Schema | None:
    """Columns of a parquet file; None when it cannot be read."""
    try:
        with ParquetFile(file) as parquet:
            return parquet.schema_arrow
    except UNREADABLE:
        return None


def rows_of(file: Path) -> int:
    """Rows that a parquet file claims; 1, for its rejection, when it cannot be read."""
    try:
        with ParquetFile(file) as parquet:
            return parquet.metadata.num_rows
    except UNREADABLE:
        return 1


def batches_of(file: Path, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """The wanted columns of a file, some rows at a time. ValueError when they are not there."""
    # pre_buffer would hold a whole row group with all its pictures.
    with ParquetFile(file, pre_buffer=False) as parquet:
        check_schema(file.name, parquet.schema_arrow, wanted)
        columns = columns_of(wanted)
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)


def columns_of(wanted: Wanted) -> list[str]:
    """Names of the columns that are read."""
    columns = [wanted.key_column, wanted.text_column if wanted.text else None]
    columns.append(wanted.image_column if wanted.image else None)
    return list(dict.fromkeys(name for name in columns if name is not None))


def check_schema(source: str, schema: pa.Schema, wanted: Wanted) -> None:
    """ValueError when a column is not there, or holds something else than it must."""
    for column in columns_of(wanted):
        if column not in schema.names:
            raise ValueError(f"{source} has no column {column!r}; its columns: {listed(schema.names)}")
        kind = schema.field(column).type
        image = wanted.image and column == wanted.image_column
        if column == wanted.key_column and types.is_integer(kind):
            continue
        parts = [field.name for field in kind] if types.is_struct(kind) else []
        if not (is_text(kind) or types.is_null(kind) or (image and {"bytes", "path"} & set(parts))):
            allowed = "pictures as {bytes, path}, bytes or file names" if image else "text"
            raise ValueError(f"column {column!r} of {source} holds {kind}; allowed: {allowed}")


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text or bytes, plain or as a dictionary."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return (
        is_string(kind) or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    )


def is_string(kind: pa.DataType) -> bool:
    """Whether a type holds text rather than bytes."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def records_of(
    batch: pa.RecordBatch,
    row: int,
    wanted: Wanted,
    find: Callable[[str], Path | None],
    not_found: str = "picture's path points outside the folder",
) -> Iterator[Record]:
    """Records of a batch whose first row has this number.

    `find` gives the file of a name that stands in place of a picture; `not_found` is the reason where it
    gives None.
    """
    rows = batch.num_rows
    nothing: list[bytes | None] = [None] * rows
    texts = as_bytes(batch.column(wanted.text_column)) if wanted.text else nothing
    keys = as_bytes(batch.column(wanted.key_column)) if wanted.key_column else nothing
    contents, names = images_of(batch.column(wanted.image_column)) if wanted.image else (nothing, nothing)
    for i in range(rows):
        raw_key, name = keys[i], names[i]
        key = raw_key.decode("utf-8", "backslashreplace") if raw_key else str(row + i)
        image: bytes | Path | None = contents[i]
        defect = "" if raw_key or not wanted.key_column else "key is missing"
        if image is None and name and not defect:
            image = find(name.decode("utf-8", "surrogateescape"))
            defect = "" if image else not_found
        yield Record(row + i, key, texts[i], image, defect)


def images_of(column: pa.Array) -> tuple[list[bytes | None], list[bytes | None]]:
    """Contents and file names of pictures, None where there are none."""
    nothing: list[bytes | None] = [None] * len(column)
    if types.is_struct(column.type):
        parts = {field.name for field in column.type}
        contents, names = (
            as_bytes(compute.struct_field(column, part)) if part in parts else nothing
            for part in ("bytes", "path")
        )
        return contents, names
    return (nothing, as_bytes(column)) if is_string(column.type) else (as_bytes(column), nothing)


def as_bytes(column: pa.Array) -> list[bytes | None]:
    """Values as bytes: as text, one that is not UTF-8 would cost its whole batch."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_integer(column.type):
        column = column.cast(pa.string())
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values
