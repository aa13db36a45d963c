"""Find exact and near-duplicate pictures of an image folder; with --apply, write a folder without them.

    safetune dedupe data/pool
    safetune dedupe data/pool --apply data/pool-unique

Two pictures are near-duplicates when their perceptual hashes (256 bits) differ in at most --distance bits:
the same picture scaled or compressed again, but not one that is cut, mirrored or shows another small object.
The first in the order of metadata.jsonl (without it, of the names) is kept. DATA/dedupe/duplicates.parquet
tells for every duplicate which picture it repeats: key and duplicate_of are names in DATA. Nothing is ever
deleted.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from safetune.data.duplicates import Duplicate, find_duplicates
from safetune.data.hashing import picture_hashes
from safetune.files import replace_folder, write_json, write_parquet

logger = logging.getLogger("dedupe")

DISTANCE = 10
"""On 150 scenes of TinySD (64 x 64) JPEG of quality 60 or half the size moved at most 10 of 256 bits, taking
a small object out of the picture at least 16, another scene at least 58. Of imagehash's usual 64 bits the
object took as few as 4, no more than JPEG did."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names by which `datasets` finds an image folder's metadata; the first is read here."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetune dedupe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="image folder, or its metadata.jsonl")
    parser.add_argument(
        "--distance",
        type=int,
        default=DISTANCE,
        help="most differing bits, of 256; 0 finds equal hashes only (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder of duplicates.parquet (default: DATA/dedupe)")
    parser.add_argument(
        "--apply",
        type=Path,
        metavar="FOLDER",
        help="write an image folder without the duplicates: hard links where they can be, else copies",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="threads that read pictures (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        dedupe(args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune dedupe: {mistake}", file=sys.stderr)
        return 2
    return 0


def dedupe(args: argparse.Namespace) -> None:
    data = args.data.parent if args.data.name == METADATA[0] else args.data
    if args.apply is not None and args.apply.exists():
        raise ValueError(f"--apply {args.apply} exists: give a new folder")
    lines = read_metadata(data)
    names = list(lines) if lines else picture_names(data)
    if not names:
        raise ValueError(f"{data} holds no pictures; read are {', '.join(PICTURES)}")

    # Threads: Pillow decodes and scales without the interpreter's lock.
    with ThreadPoolExecutor(max(1, args.workers)) as pool:
        found = pool.map(picture_hashes, [data / name for name in names])
        hashes = list(tqdm(found, total=len(names), desc="dedupe", unit="picture"))
    readable = [(name, each) for name, each in zip(names, hashes, strict=True) if each is not None]
    unreadable = [name for name, each in zip(names, hashes, strict=True) if each is None]
    if unreadable:
        shown = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        logger.warning("%d files hold no picture that can be read: %s", len(unreadable), shown)

    keys = [name for name, _ in readable]
    contents, looks = [each[0] for _, each in readable], [each[1] for _, each in readable]
    duplicates = find_duplicates(contents, looks, args.distance)
    folder = args.out or data / "dedupe"
    write_duplicates(folder, keys, duplicates)
    exact = sum(duplicate.exact for duplicate in duplicates)
    facts = {
        "pictures": len(names),
        "unreadable": unreadable,
        "exact": exact,
        "near": len(duplicates) - exact,
        "distance": args.distance,
        "hash": "imagehash.phash, 16 x 16 bits",
    }
    write_json(folder / "dedupe.json", facts)
    summary = f"dedupe: {len(names)} pictures, {exact} exact and {len(duplicates) - exact} near-duplicates"
    if args.apply is not None:
        left_out = {keys[duplicate.row] for duplicate in duplicates}
        kept = [key for key in keys if key not in left_out]
        write_unique(data, args.apply, kept, lines)
        summary += f"; the other {len(kept)} in {args.apply}"
    print(f"{summary}; list in {folder / 'duplicates.parquet'}")


def read_metadata(data: Path) -> dict[str, str]:
    """Lines of metadata.jsonl by file_name, in order; none where there is no such file.

    Raises ValueError for metadata in another place or format: a copy of the folder would lose it.
    """
    if not data.is_dir():
        raise ValueError(f"{data}: no such folder; give an image folder or its metadata.jsonl")
    others = [path for name in METADATA for path in data.rglob(name) if path != data / METADATA[0]]
    if others:
        raise ValueError(f"{others[0]} cannot be read here: put all metadata into {data / METADATA[0]}")
    if not (data / METADATA[0]).is_file():
        return {}
    text = (data / METADATA[0]).read_text(encoding="utf-8")
    lines: dict[str, str] = {}
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            name = json.loads(line)["file_name"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{data / METADATA[0]}: line {number} is no object with a file_name") from None
        if not isinstance(name, str) or not (data / name).resolve().is_relative_to(data.resolve()):
            raise ValueError(f"{data / METADATA[0]}: file_name of line {number} is not inside of {data}")
        if not (data / name).is_file():
            raise FileNotFoundError(f"{data / METADATA[0]}: line {number} names a picture that is not there")
        lines[name] = line
    return lines


def picture_names(data: Path) -> list[str]:
    """All pictures of a folder by name, those of hidden folders left out."""
    paths = (path.relative_to(data) for path in data.rglob("*") if path.suffix.lower() in PICTURES)
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def write_duplicates(folder: Path, keys: Sequence[str], duplicates: Sequence[Duplicate]) -> None:
    """Write duplicates.parquet: key, duplicate_of, distance, exact."""
    frame = pd.DataFrame(
        {
            "key": pd.Series([keys[each.row] for each in duplicates], dtype="string"),
            "duplicate_of": pd.Series([keys[each.duplicate_of] for each in duplicates], dtype="string"),
            "distance": pd.Series([each.distance for each in duplicates], dtype="int64"),
            "exact": pd.Series([each.exact for each in duplicates], dtype="bool"),
        }
    )
    write_parquet(frame, folder / "duplicates.parquet")


def write_unique(data: Path, out: Path, names: Sequence[str], lines: dict[str, str]) -> None:
    """Write an image folder of some of the pictures, with their lines of metadata as they were."""
    with replace_folder(out) as temporary:
        for name in tqdm(names, desc="apply", unit="picture"):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(data / name, target)
        if lines:
            text = "".join(lines[name] + "\n" for name in names)
            (temporary / METADATA[0]).write_text(text, encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


if __name__ == "__main__":
    raise SystemExit(main())
