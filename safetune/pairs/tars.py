"""Webdataset tars: samples by name, their pictures left in the tar until they are needed."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from os.path import commonpath
from pathlib import Path
from tarfile import ReadError, TarFile, TarInfo
from typing import IO

from webdataset.tariterators import base_plus_ext, group_by_keys  # type: ignore[import-untyped]

from safetune.pairs.folders import SUFFIXES
from safetune.pairs.keys import clean_key, listed
from safetune.pairs.lines import LONGEST_LINE, LOOKED_AT, parse_object, record_of
from safetune.pairs.records import FilePart, Record, Wanted, files_fingerprint

DAMAGED = "tar is damaged or cut short: its samples from here on are lost"

END_OF_ARCHIVE: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
"""What tarfile raises for the block of zeros that ends every whole archive."""

ANY_PICTURE = "image"
"""The usual image column; any other one is an extension."""

Member = dict[str, object]
"""What webdataset passes from one step to the next: fname, data, __url__; an empty one ends a sample."""


class StrictHeader(TarInfo):
    """A tar header that hides no damage: tarfile takes a broken one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> "StrictHeader":
        """The next header. ReadError where there should be one and is none."""
        try:
            header = super().fromtarfile(tarfile)
        except END_OF_ARCHIVE:
            raise
        except Exception as error:
            raise ReadError(str(error)) from None
        if header.size < 0:  # would be read over and over
            raise ReadError("negative size")
        return header


class Tars:
    """Samples of tars, one tar after the other.

    The caption is `text_column` of the sample's .json where it has that, its .txt otherwise. Keys are
    webdataset's; with more than one tar the tar's name stands before them, as shards often count from 0 each.
    """

    def __init__(self, files: Sequence[Path], wanted: Wanted):
        self.files, self.wanted = files, wanted
        self.root = Path(commonpath([file.parent for file in files]))
        samples = (sample for file in files for sample in samples_of(file, []))
        self.check_columns(list(islice(samples, LOOKED_AT)))

    length = None
    """Only a pass over all tars could tell."""

    @cached_property
    def fingerprint(self) -> str:
        return files_fingerprint(self.root, self.files)

    def __iter__(self) -> Iterator[Record]:
        row = 0
        for file in self.files:
            damage: list[str] = []
            held: Record | None = None  # the sample before a damage may lack the rest of its files
            for sample in samples_of(file, damage):
                if held is not None:
                    yield held
                held = self.record(row, file, sample)
                row += 1
            if held is not None and damage and not self.complete(held):
                held, row = None, row - 1
            if held is not None:
                yield held
            if damage:
                yield Record(row, self.name_of(file), None, None, damage[0])
                row += 1

    def record(self, row: int, file: Path, sample: Member) -> Record:
        """The record of a sample."""
        key = clean_key(str(sample["__key__"]))
        key = key if len(self.files) == 1 else f"{self.name_of(file).removesuffix('.tar')}/{key}"
        record = record_of(row, cells_of(sample), self.wanted, key)
        if record.defect:
            return record
        text = sample.get("txt") if record.text is None and self.wanted.text else record.text
        if isinstance(text, FilePart):
            return replace(record, defect=f"caption's file is larger than {LONGEST_LINE} bytes")
        image = picture_of(sample, self.wanted.image_column) if self.wanted.image else None
        return Record(row, record.key, text if isinstance(text, bytes) else record.text, image)

    def check_columns(self, samples: list[Member]) -> None:
        """ValueError when none of the first samples has a caption, a picture, or the key's column."""
        files = dict.fromkeys(name for sample in samples for name in extensions(sample))
        columns = dict.fromkeys(name for sample in samples for name in cells_of(sample))
        wanted, missing = self.wanted, ""
        if wanted.text and "txt" not in files and wanted.text_column not in columns:
            missing = f".txt and no .json with a column {wanted.text_column!r}"
        if wanted.key_column and wanted.key_column not in columns:
            missing = f".json with a column {wanted.key_column!r}"
        if wanted.image and all(picture_of(sample, wanted.image_column) is None for sample in samples):
            named = wanted.image_column != ANY_PICTURE
            missing = f".{wanted.image_column}" if named else f"pictures ({', '.join(SUFFIXES)})"
        if samples and missing:
            raise ValueError(
                f"the samples of {self.files[0]} have no {missing}; found: "
                f"{listed(f'.{name}' for name in files)}; columns of .json: {listed(columns)}"
            )

    def complete(self, record: Record) -> bool:
        has_text, has_image = record.text is not None, record.image is not None
        return (has_text or not self.wanted.text) and (has_image or not self.wanted.image)

    def name_of(self, file: Path) -> str:
        return clean_key(file.relative_to(self.root).as_posix())


def samples_of(file: Path, damage: list[str]) -> Iterator[Member]:
    """Samples of a tar as webdataset groups them; what is wrong with the tar goes to `damage`."""
    # webdataset's own reader decodes nothing either, but reads every picture and takes damage for the end.
    samples: Iterator[Member] = group_by_keys(members_of(file, damage))
    return samples


def members_of(file: Path, damage: list[str]) -> Iterator[Member]:
    """Files of a tar in their order: captions as bytes, all others as a FilePart."""
    names: set[str] = set()
    sample = ""
    try:
        with file.open("rb") as stream:
            for name, part in parts_of(file, stream):
                prefix, extension = base_plus_ext(name)
                if prefix is None or extension.startswith("__"):  # __key__ and the like are webdataset's own
                    continue
                extension = extension.lower()
                if prefix != sample:
                    sample, names = prefix, set()
                elif extension in names:  # the same key again: another sample, which is a repeat
                    names = set()
                    yield {}
                names.add(extension)
                data: object = part
                if extension in ("txt", "json") and part.size <= LONGEST_LINE:
                    stream.seek(part.offset)
                    data = stream.read(part.size)
                yield {"fname": name, "data": data, "__url__": file.name}
    except OSError as error:
        damage.append(f"tar cannot be read ({error.strerror})")
    except Exception:  # tarfile stumbles over damaged headers in many ways
        damage.append(DAMAGED)


def parts_of(file: Path, stream: IO[bytes]) -> Iterator[tuple[str, FilePart]]:
    """Name and place of each plain file in a tar. Raises what tarfile raises for a damaged or cut one."""
    size = file.stat().st_size
    with tarfile.open(fileobj=stream, mode="r:", tarinfo=StrictHeader) as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
            if member.isreg() and not member.issparse():
                if member.offset_data + member.size > size:
                    raise ReadError("cut short")
                yield member.name, FilePart(file, member.offset_data, member.size)


def cells_of(sample: Member) -> dict[str, object]:
    """The object in a sample's .json; empty where it is missing or broken: a .txt may be there."""
    content = sample.get("json")
    cells = parse_object(content) if isinstance(content, bytes) else {}
    return {} if isinstance(cells, str) else cells


def extensions(sample: Member) -> list[str]:
    """Extensions of a sample's files."""
    return [name for name in sample if not name.startswith("__")]


def picture_of(sample: Member, image_column: str) -> FilePart | None:
    """The file whose extension is the image column; under its usual name the first picture."""
    for name in extensions(sample):
        if name == image_column or (image_column == ANY_PICTURE and f".{name}".endswith(SUFFIXES)):
            part = sample[name]
            return part if isinstance(part, FilePart) else None
    return None
