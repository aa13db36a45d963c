"""Pictures of labelled pairs by key: one pass over the records, and only what is asked for is decoded."""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

import torch
from PIL.Image import Image
from torch import Tensor

from safetune.backbone import Backbone
from safetune.pairs import Limits, Pair, PairSource, Record, mark_repeats, read_pair, to_tensor


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


def labelled_latents(
    backbone: Backbone, source: PairSource, keys: Sequence[str], resolution: int, batch_size: int = 64
) -> Tensor:
    """Latents (N, C, h, w) of the pictures of N keys, in their order.

    Raises ValueError when the source lacks one of them or its picture can no longer be read.
    """
    places = {key: place for place, key in enumerate(keys)}
    latents: list[Tensor | None] = [None] * len(keys)
    wanted = (record for record in mark_repeats(source) if record.key in places and not record.defect)
    while batch := list(islice(wanted, batch_size)):
        pairs = [(record.key, picture) for record in batch if (picture := read_picture(record)) is not None]
        encoded = backbone.encode_images(
            torch.stack([to_tensor(picture, resolution) for _, picture in pairs])
        )
        for (key, _), latent in zip(pairs, encoded, strict=True):
            latents[places[key]] = latent
    lost = [key for key, place in places.items() if latents[place] is None]
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(keys)} labelled pictures are not there any more, such as {lost[0]!r}: run "
            "`safetune label` again on this data"
        )
    return torch.stack([latent for latent in latents if latent is not None])
