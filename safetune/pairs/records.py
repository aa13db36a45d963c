"""What a source yields, and what becomes of it: a pair, or a rejection with its reason."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from PIL.Image import Image as Picture

from safetune.files import fingerprint_of

Kind = Literal["pairs", "prompts", "images"]
"""What is read of each row: a prompt and its picture, the prompt alone, or the picture alone."""


@dataclass(frozen=True)
class FilePart:
    """A file inside another, such as a picture in a tar: its bytes are read only when they are needed."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Record:
    """A row of a source as it lies there: nothing decoded, nothing checked."""

    row: int
    """Position in the source, from 0; rows that cannot be read count too."""
    key: str
    """file_name, webdataset key, key column or row number; of a broken line, file and line number."""
    text: str | bytes | None
    image: bytes | Path | FilePart | None
    """None: prompts alone, or missing."""
    defect: str = ""
    """Why the row could not be read, "" where it could; it becomes the reason of the rejection."""


@dataclass(frozen=True)
class Pair:
    """A row that can be scored."""

    row: int
    key: str
    text: str
    """The prompt without spaces around it; "" when images alone are read."""
    picture: Picture | None
    """RGB and upright; None when prompts alone are read."""
    notes: tuple[str, ...] = ()
    """Conversions that the picture went through."""


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be scored."""

    row: int
    key: str
    reason: str
    """One short sentence, never the prompt itself."""


@dataclass(frozen=True)
class Limits:
    """What a row may hold; sizes of pictures are read from their header, before anything is decoded."""

    max_side: int = 10_000
    """Longest side of a picture in pixels."""
    max_pixels: int = 64_000_000
    """Width times height. Decoding takes up to 8 bytes a pixel, and up to twice that while converting."""
    min_side: int = 16
    """Shortest side of a picture in pixels: smaller ones are icons and tracking dots."""
    max_characters: int = 2_000
    """Length of a prompt. Text encoders read 77 to 512 tokens and drop the rest in silence."""
    max_bytes: int = 512 * 2**20
    """Size of a picture's file: some decoders read all of it into memory."""


@dataclass(frozen=True)
class Wanted:
    """What to take from each row of a source."""

    kind: Kind
    text_column: str
    image_column: str
    key_column: str | None

    @property
    def text(self) -> bool:
        return self.kind != "images"

    @property
    def image(self) -> bool:
        return self.kind != "prompts"


class PairSource(Protocol):
    """Rows in a stable order, read anew by each iteration, in memory that does not grow with their number."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits or the hub's own; another one when the data changed, see `files_fingerprint`."""

    @property
    def length(self) -> int | None:
        """Rows, as far as that can be told without reading pictures; a damaged file may hold fewer."""

    def __iter__(self) -> Iterator[Record]: ...


def files_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """16 hex digits of the names below `root`, sizes and modification times of files, in any order.

    Contents are not read: a pool may hold terabytes. The folder's own place does not count, so that a pool
    may move; a copy that does not keep modification times counts as another pool. Files that are not there
    count by name.
    """
    total = 0  # a sum needs no list of files, and no order
    for file in files:
        try:
            facts = file.stat()
            size, modified = facts.st_size, facts.st_mtime_ns
        except OSError:
            size, modified = -1, -1
        total += int(fingerprint_of([file.relative_to(root).as_posix(), size, modified]), 16)
    return f"{total % 2**64:016x}"
