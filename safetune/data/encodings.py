"""Latents of pictures and embeddings of prompts on disk, by content: each is encoded only once."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.conditioning import Conditioning

PARTS = ("embeds", "pooled", "mask")
PAIRS_FILE = "pairs.parquet"


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

    def read(self, names: Sequence[str]) -> Tensor:
        """The tensors of N names, stacked; a name may come twice. KeyError for one that is not there."""
        wanted: defaultdict[Path, list[str]] = defaultdict(list)
        for name in set(names):
            wanted[self.places[name]].append(name)
        values: dict[str, Tensor] = {}
        for path, inside in wanted.items():
            with safe_open(path, framework="pt") as file:
                values |= {name: file.get_tensor(name) for name in inside}
        return torch.stack([values[name] for name in names])


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
