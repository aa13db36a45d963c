"""Pictures of labelled pairs by key: one pass over the records, and only what is asked for is decoded."""

from collections.abc import Collection, Mapping
from pathlib import Path

from PIL.Image import Image

from safetune.labeling.finished import read_summary
from safetune.pairs import Limits, Pair, PairSource, Record, mark_repeats, open_pairs, read_pair

COLUMNS = ("image_column", "key_column", "split", "streaming")
"""Options of open_pairs that a run of `safetune label` leaves in its labels.json."""


def open_labelled(data: str | Path, labels: Path) -> PairSource:
    """The pictures that were labelled, read as the labeler read them; `labels` is the folder of the labels.

    ValueError when there is nothing to read at `data`.
    """
    options = read_summary(labels).get("options", {})
    return open_pairs(data, kind="images", **{name: options[name] for name in COLUMNS if name in options})


def find_records(source: PairSource, keys: Collection[str]) -> dict[str, Record]:
    """The records of these keys, nothing decoded; a key that the source lacks is missing."""
    wanted = frozenset(keys)
    return {
        record.key: record
        for record in mark_repeats(source)
        if record.key in wanted and record.image is not None
    }


def read_picture(record: Record) -> Image | None:
    """The record's picture, RGB and upright; None when it cannot be read."""
    pair = read_pair(record, "images", Limits())
    return pair.picture if isinstance(pair, Pair) else None


def read_pictures(source: PairSource, keys: Collection[str]) -> Mapping[str, Image]:
    """Pictures of a few keys, all in memory; what is not there or cannot be read is missing."""
    found = {key: read_picture(record) for key, record in find_records(source, keys).items()}
    return {key: picture for key, picture in found.items() if picture is not None}
