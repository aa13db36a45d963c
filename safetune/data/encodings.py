"""Latents of pictures and embeddings of prompts on disk, by content: each is encoded only once."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.conditioning import Conditioning
from safetune.data.shards import Numbers, Place, Rows

PARTS = ("embeds", "pooled", "mask")
PAIRS_FILE = "pairs.parquet"
FACTS_FILE = "cache.json"
SPREAD_ROWS = 2048
"""Prompts that the spread of embeddings is taken of: more of them change next to nothing."""


class TensorStore:
    """Named tensors in safetensors shards of one folder; shards are added, never changed.

    One process at a time writes.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.places: dict[str, Path] = {}
        for path in sorted(folder.glob(f"{kind}-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self.places |= dict.fromkeys(file.keys(), path)

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, whole or not at all; nothing for no tensors."""
        if not tensors:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.kind}-{len(set(self.places.values())):05d}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
        temporary.replace(path)
        self.places |= dict.fromkeys(tensors, path)

    def rows(self, names: Iterable[str]) -> Rows:
        """The tensors of N names, which may repeat, to be read by row. KeyError for one that is not there."""
        return Rows(Place(self.places[name], name) for name in names)

    def read(self, names: Sequence[str]) -> Tensor:
        """The tensors of N names, stacked; as `rows`."""
        return self.rows(names).read(range(len(names)))


@dataclass(frozen=True)
class PromptRows:
    """Conditioning of N prompts on disk, part by part."""

    parts: Mapping[str, Rows]

    def __len__(self) -> int:
        return len(self.parts["embeds"])

    def read(self, rows: Numbers) -> Conditioning:
        """Conditioning of B rows, on the CPU."""
        return Conditioning(**{part: values.read(rows) for part, values in self.parts.items()})

    def spread(self) -> Conditioning:
        """Standard deviation of embeddings (D,) over rows and tokens, and of pooled ones (P,) over rows.

        Of SPREAD_ROWS rows, evenly spaced, where there are more.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, SPREAD_ROWS).round().astype(int))
        pooled = self.parts.get("pooled")
        return Conditioning(
            deviation(self.parts["embeds"], rows), None if pooled is None else deviation(pooled, rows)
        )


def deviation(values: Rows, rows: Sequence[int] | np.ndarray, batch_size: int = 64) -> Tensor:
    """Standard deviation over all but the last dimension of some rows, with one batch of them in memory."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(rows), batch_size):
        batch = values.read(rows[start : start + batch_size]).double()
        flat = batch.flatten(0, -2)
        count, mean, squares = count + len(flat), mean + flat.sum(0), squares + flat.pow(2).sum(0)
    mean = mean / count
    return ((squares - count * mean.pow(2)) / (count - 1)).clamp(min=0).sqrt().to(values.row(0).dtype)


@dataclass(frozen=True)
class Encoder:
    """Names of encodings: hashes of the content and of all that the encoding hangs on."""

    latents: str
    """Fingerprint of autoencoder, resolution and precision."""
    prompts: str
    """Fingerprint of text encoders and precision."""

    def latent_name(self, content: bytes) -> str:
        """Name of a picture's latents, by the bytes of its file."""
        return hashlib.sha256(self.latents.encode() + hashlib.sha256(content).digest()).hexdigest()

    def prompt_name(self, text: str) -> str:
        """Name of a prompt's embeddings."""
        return hashlib.sha256(self.prompts.encode() + text.encode()).hexdigest()


def encoder_of(backbone: Backbone, resolution: int) -> Encoder:
    """What encodings of a backbone are named by."""
    vae = backbone.pipeline.vae
    scale = [vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)]
    texts = [
        [name, weights_fingerprint(part), str(part.dtype)]
        for name, part in sorted(backbone.pipeline.components.items())
        if name.startswith("text_encoder") and isinstance(part, nn.Module)
    ]
    pictures = [weights_fingerprint(vae), str(vae.dtype), *scale, resolution]
    return Encoder(json.dumps(pictures), json.dumps([backbone.family, texts]))


def prompt_tensors(names: Iterable[str], conditioning: Conditioning) -> dict[str, Tensor]:
    """Rows of a batch of conditioning as named tensors."""
    return {
        f"{name}.{part}": getattr(conditioning, part)[row]
        for row, name in enumerate(names)
        for part in PARTS
        if getattr(conditioning, part) is not None
    }


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as the models see them, on the CPU, in the order of the data."""

    keys: list[str]
    texts: list[str]
    latents: Tensor
    """Scaled latents (N, C, h, w)."""
    prompts: Conditioning
    """N rows."""


def read_encoded(folder: Path) -> EncodedPairs:
    """All pairs that the last run of `safetune cache` went through. ValueError when there was none."""
    if not (folder / PAIRS_FILE).is_file():
        raise ValueError(f"{folder} holds no cached pairs: run `safetune cache DATA --out {folder}` first")
    frame = pd.read_parquet(folder / PAIRS_FILE)
    store, prompts = TensorStore(folder, "latents"), TensorStore(folder, "prompts")
    first = frame.prompt.iloc[0]
    parts = {
        part: prompts.read([f"{name}.{part}" for name in frame.prompt])
        for part in PARTS
        if f"{first}.{part}" in prompts
    }
    return EncodedPairs(
        list(frame.key), list(frame.text), store.read(list(frame.picture)), Conditioning(**parts)
    )


def encoded_rows(
    folder: Path, encoder: Encoder, keys: Sequence[str], captions: Sequence[str]
) -> tuple[Rows, PromptRows]:
    """Latents and prompts of N pairs that `safetune cache` encoded, nothing loaded.

    Raises ValueError when there are none, when another model, resolution or precision encoded them, and when
    some of the pairs are not among them.
    """
    again = f"run `safetune cache DATA --out {folder}` with this run's model, resolution and precision"
    if not (folder / PAIRS_FILE).is_file():
        raise ValueError(f"{folder} holds no cached pairs: {again}")
    made = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8")).get("encoder")
    if made != asdict(encoder):
        raise ValueError(
            f"the encodings in {folder} come from another autoencoder, text encoder, resolution or precision "
            f"than this run's ({made}, not {asdict(encoder)}): {again}"
        )
    frame = pd.read_parquet(folder / PAIRS_FILE)
    pictures = dict(zip(frame.key, frame.picture, strict=True))
    store, prompts = TensorStore(folder, "latents"), TensorStore(folder, "prompts")
    names = [encoder.prompt_name(caption) for caption in captions]
    lost = [
        key
        for key, name in zip(keys, names, strict=True)
        if pictures.get(key, "") not in store or f"{name}.embeds" not in prompts
    ]
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(keys)} labelled pairs are not in {folder}, such as {lost[0]!r}: {again}"
        )
    parts = {
        part: prompts.rows(f"{name}.{part}" for name in names)
        for part in PARTS
        if f"{names[0]}.{part}" in prompts
    }
    return store.rows(pictures[key] for key in keys), PromptRows(parts)
