"""Folders of picture files, with captions in metadata.jsonl or without any."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetune.pairs.keys import clean_key
from safetune.pairs.lines import check_columns, objects_of, record_of, refuse_unreadable
from safetune.pairs.records import Record, Wanted, files_fingerprint

METADATA = "metadata.jsonl"
FILE_NAME = "file_name"

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""How the names of pictures end; what they hold is found out by their first bytes."""


class ImageFolder:
    """Pictures that metadata.jsonl lists, one object with file_name and caption on each line.

    Its fingerprint covers every picture below the folder: labels of a picture that was replaced are stale.
    """

    def __init__(self, folder: Path, wanted: Wanted):
        self.folder, self.wanted = folder, wanted
        refuse_unreadable(folder / METADATA)
        columns = [
            wanted.text_column if wanted.text else None,
            FILE_NAME if wanted.image else None,
            wanted.key_column,
        ]
        check_columns(folder / METADATA, columns, objects_of(folder / METADATA))

    @cached_property
    def fingerprint(self) -> str:
        pictures = pictures_in(self.folder) if self.wanted.image else ()
        return files_fingerprint(self.folder, [self.folder / METADATA, *pictures])

    @cached_property
    def length(self) -> int:
        return sum(1 for _ in objects_of(self.folder / METADATA))

    def __iter__(self) -> Iterator[Record]:
        for row, (number, cells) in enumerate(objects_of(self.folder / METADATA)):
            yield self.record(row, f"{METADATA}:{number}", cells)

    def record(self, row: int, key: str, cells: dict[str, object] | str) -> Record:
        """The record of a line; `key` is its key where it has no file_name."""
        if isinstance(cells, str):
            return Record(row, key, None, None, cells)
        name = cells.get(FILE_NAME)
        named = isinstance(name, str) and name.strip() != ""
        if isinstance(name, str) and named:
            key = clean_key(PurePosixPath(name).as_posix())
        record = record_of(row, cells, self.wanted, key)
        if record.defect or not self.wanted.image:
            return record
        if not isinstance(name, str) or not named:
            return Record(row, record.key, None, None, f"{FILE_NAME} is missing")
        path = inside(self.folder, name)
        if path is None:
            return Record(row, record.key, None, None, f"{FILE_NAME} points outside the folder")
        return Record(row, record.key, record.text, path)


class PictureFolder:
    """Pictures alone: every picture file below a folder, in the order of their names."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def fingerprint(self) -> str:
        return files_fingerprint(self.folder, pictures_in(self.folder))

    @cached_property
    def length(self) -> int:
        return sum(1 for _ in pictures_in(self.folder))

    def __iter__(self) -> Iterator[Record]:
        for row, path in enumerate(pictures_in(self.folder)):
            yield Record(row, clean_key(path.relative_to(self.folder).as_posix()), None, path)


def pictures_in(folder: Path) -> Iterator[Path]:
    """Picture files below a folder, in order; hidden ones and those in hidden folders left out.

    Only the names of one folder at a time are held.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder; None for names that lead out of it, on any system."""
    parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\0" in name:
        return None
    return folder / name
