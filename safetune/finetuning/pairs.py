"""Training pairs: what the labels say of each, and where its latents and its prompt lie on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor

from safetune.backbone import Backbone
from safetune.data.encodings import PromptRows, encoded_rows, encoder_of
from safetune.data.shards import Rows
from safetune.files import fingerprint_of
from safetune.finetuning.buckets import bucket_sizes
from safetune.finetuning.encoding import LATENTS, TIME_IDS, encode_captions, encode_pictures
from safetune.pairs import PairSource


@dataclass(frozen=True)
class TrainingPairs:
    """N labelled pairs, those that are never drawn too; tensors are on the CPU."""

    keys: list[str]
    captions: list[str]
    harm: Tensor
    """Harm (N,) in [0, 1]; 0 for pairs labelled clean."""
    weight: Tensor
    """Weight (N,) in the loss: 1, that of uncertain pairs, or 0 for those that are left out."""
    harmful: np.ndarray
    """Rows that count as harmful; an uncertain pair does with harm of 0.5 or more."""
    clean: np.ndarray
    """Rows that count as clean."""
    by_image: Tensor
    """(N,) bool: the picture tells the harm, not the caption."""
    concept: Tensor
    """Number (N,) of the nearest harmful concept."""
    prompts: PromptRows
    latents: Rows
    """The pairs' own pictures, then the safe ones."""
    safe: np.ndarray
    """Place (N,) of the prompt's safe picture among the latents, -1 for none."""
    fingerprint: str
    """Of all that the labels say and where the harm lies."""
    sizes: Tensor | None = None
    """SDXL's time ids of each of the latents (., 6), with buckets."""
    bucket: np.ndarray | None = None
    """Number (N,) of the size of each pair's picture, with buckets."""

    def by_size(self, rows: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Some of the rows, not none, by height and width of their latents."""
        numbers = np.zeros(len(rows), int) if self.bucket is None else self.bucket[rows]
        for number in np.unique(numbers):
            alike = rows[numbers == number]
            _, height, width = self.latents.shape(alike[0])
            yield (height, width), alike

    def with_safe_pictures(self, rows: np.ndarray, drawn: Rows) -> "TrainingPairs":
        """The pairs with latents that were drawn for the captions of some rows, in the order of `rows`.

        With buckets a drawing has the size of the pair's own picture (by_size): a step is of one size.
        """
        safe = self.safe.copy()
        safe[rows] = len(self.latents) + np.arange(len(rows))
        sizes = self.sizes
        if sizes is not None:
            height, width = sizes[rows, 4], sizes[rows, 5]
            none = torch.zeros_like(height)
            sizes = torch.cat([sizes, torch.stack([height, width, none, none, height, width], dim=1)])
        return replace(self, latents=self.latents + drawn, safe=safe, sizes=sizes)


def training_pairs(
    accelerator: Accelerator,
    backbone: Backbone,
    source: PairSource | Rows,
    labels: pd.DataFrame,
    concepts: Sequence[str],
    folder: Path,
    resolution: int,
    uncertain_weight: float = 0.0,
    buckets: bool = False,
    cache: Path | None = None,
) -> TrainingPairs:
    """The pairs of a table of labels (labeling.finished.read_labels), encoded. Every process calls it.

    Latents and prompts are read from `cache`, which `safetune cache` wrote, or else encoded once into
    folder/pictures and folder/prompts. Where `source` is latents, a row for each label, they are the
    pictures. `concepts` are the redirector's. Raises ValueError for labels without captions, pictures that
    are not there, and encodings of another model or resolution.
    """
    keys, captions = labels.key.tolist(), labels.text.tolist()
    if not all(captions):
        raise ValueError(
            "the labels are of pictures without captions: run `safetune label` on pairs, not --kind images"
        )
    if cache and buckets:
        raise ValueError(f"{cache} holds squares: leave out --buckets, or --cache")
    encoder = encoder_of(backbone, resolution)
    sizes = bucket_sizes(resolution) if buckets else [(resolution, resolution)]
    time_ids = bucket = None
    if cache:
        latents, prompts = encoded_rows(cache, encoder, keys, captions)
    elif isinstance(source, Rows):
        latents = source
        prompts = encode_captions(accelerator, folder / "prompts", backbone, encoder, captions)
    else:
        shards = encode_pictures(accelerator, folder / "pictures", backbone, encoder, source, keys, sizes)
        latents = shards.read(LATENTS)
        prompts = encode_captions(accelerator, folder / "prompts", backbone, encoder, captions)
        if buckets:
            shapes = [latents.shape(row) for row in range(len(keys))]
            bucket = np.unique(shapes, axis=0, return_inverse=True)[1]
            time_ids = shards.read(TIME_IDS).read(range(len(keys)))

    label, by_image = labels.label.to_numpy(), (labels.evidence == "image").to_numpy(dtype=bool)
    harm = np.where(label == "clean", 0.0, labels.harm).astype(np.float32)
    weight = np.where(label == "uncertain", uncertain_weight, 1.0).astype(np.float32)
    is_harmful = (label == "harmful") | ((label == "uncertain") & (harm >= 0.5))
    concept = [concepts.index(name) for name in labels.concept]
    columns = [values.tolist() for values in (harm, weight, is_harmful, by_image)]
    return TrainingPairs(
        keys,
        captions,
        torch.from_numpy(harm),
        torch.from_numpy(weight),
        np.flatnonzero(is_harmful & (weight > 0)),
        np.flatnonzero(~is_harmful & (weight > 0)),
        torch.tensor(by_image),
        torch.tensor(concept),
        prompts,
        latents,
        np.full(len(keys), -1),
        fingerprint_of([encoder.latents, encoder.prompts, sizes, keys, captions, concept, *columns]),
        time_ids,
        bucket,
    )
