"""Which reader a pool needs: by what lies at its path, or the hub where nothing does."""

import re
from collections.abc import Callable
from pathlib import Path

from braceexpand import braceexpand

from safetune.pairs.folders import METADATA, SUFFIXES, ImageFolder, PictureFolder, pictures_in
from safetune.pairs.hub import HubDataset
from safetune.pairs.keys import listed
from safetune.pairs.lines import PromptFile
from safetune.pairs.records import Kind, PairSource, Wanted
from safetune.pairs.tables import ParquetFiles
from safetune.pairs.tars import Tars

PROMPT_SUFFIXES = (".txt", ".csv", ".jsonl")

STORES = (
    f"a folder with {METADATA}, with *.parquet or with *.tar, one .parquet or .tar file, a pattern such as "
    "data/{00000..00010}.tar, or a data set of the hub"
)
ALLOWED = {
    "pairs": STORES,
    "prompts": f"a .txt, .csv or .jsonl file, {STORES}",
    "images": f"a folder of pictures ({', '.join(SUFFIXES)}), {STORES}",
}
"""What `data` may be, for error messages."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_pairs(
    data: str | Path,
    *,
    text_column: str = "text",
    image_column: str = "image",
    key_column: str | None = None,
    split: str = "train",
    streaming: bool = False,
    kind: Kind = "pairs",
) -> PairSource:
    """A pool of pairs, prompts or images of any size; nothing is decoded or checked until `read_pair`.

    `image_column` is for parquet files, tars (an extension) and the hub; `split` and `streaming` are for the
    hub. Raises ValueError, with what was found and what is allowed, when there is nothing to read at `data`
    or a column is not there.
    """
    if kind not in ALLOWED:
        raise ValueError(f"no kind {kind!r}; allowed: {', '.join(ALLOWED)}")
    wanted = Wanted(kind, text_column, image_column, key_column)
    path = Path(data)
    if path.is_dir():
        return open_folder(path, wanted)
    if path.exists():
        return open_file(path, wanted)
    if "{" in str(data):
        return open_pattern(str(data), wanted)
    known = (*PROMPT_SUFFIXES, *SUFFIXES, ".parquet", ".tar")
    if isinstance(data, Path) or not HUB_NAME.fullmatch(data) or path.suffix.lower() in known:
        raise ValueError(f"{data}: no such file or folder; {kind} are read from {ALLOWED[kind]}")
    return HubDataset(data, wanted, split, streaming)


def open_folder(folder: Path, wanted: Wanted) -> PairSource:
    """The reader of a folder, which holds one kind of source."""
    parquet, tars = sorted(folder.glob("*.parquet")), sorted(folder.glob("*.tar"))
    readers: dict[str, Callable[[], PairSource]] = {}
    if (folder / METADATA).is_file():
        readers[METADATA] = lambda: ImageFolder(folder, wanted)
    if parquet:
        readers["*.parquet"] = lambda: ParquetFiles(folder, parquet, wanted)
    if tars:
        readers["*.tar"] = lambda: Tars(tars, wanted)
    if len(readers) > 1:
        raise ValueError(
            f"{folder} holds {' and '.join(readers)}: keep one of them, or give one file or pattern"
        )
    if not readers and wanted.kind == "images" and next(pictures_in(folder), None):
        if wanted.key_column:
            raise ValueError(
                f"{folder} holds pictures without {METADATA}: leave out the key column {wanted.key_column!r}"
            )
        return PictureFolder(folder)
    if not readers:
        found = listed(file.name + "/" * file.is_dir() for file in folder.iterdir())
        raise ValueError(
            f"{folder} holds nothing to read {wanted.kind} from; found: {found}; "
            f"allowed: {ALLOWED[wanted.kind]}"
        )
    return next(iter(readers.values()))()


def open_file(path: Path, wanted: Wanted) -> PairSource:
    """The reader of one file."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetFiles(path.parent, [path], wanted)
    if suffix == ".tar":
        return Tars([path], wanted)
    if suffix in PROMPT_SUFFIXES and wanted.kind == "prompts":
        return PromptFile(path, wanted)
    raise ValueError(f"{path}: {wanted.kind} are not read from such a file; allowed: {ALLOWED[wanted.kind]}")


def open_pattern(pattern: str, wanted: Wanted) -> PairSource:
    """The reader of tars named by a pattern with braces; each of them must be there."""
    paths = [Path(name) for name in braceexpand(pattern)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{pattern}: {len(missing)} of {len(paths)} files are not there: {listed(missing)}")
    if any(path.suffix.lower() != ".tar" for path in paths):
        raise ValueError(f"{pattern}: only names of .tar files are expanded; give a folder of other files")
    return Tars(paths, wanted)
