"""Pooled features of pictures, for distances between sets of pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safetune.evaluation.judges.base import BATCH, batches, check_pictures
from safetune.evaluation.judges.opening import TRANSFORMERS
from safetune.evaluation.judges.tinysd import TinySDJudge
from safetune.evaluation.judges.weights import folder_facts, image_processor, model_folder
from safetune.precision import fast_device
from safetune.prompts.layouts import did_you_mean

INCEPTION = (
    "FID's own Inception network comes with torch-fidelity and clean-fid, and both need torchvision, which "
    "safetune does not install: a Fréchet distance on other features is a different number and is named "
    "after them. Give tinysd, transformers:FOLDER or transformers:NAME, such as facebook/dinov2-base"
)


@dataclass(frozen=True)
class Features:
    """A network that turns pictures into vectors."""

    facts: dict[str, object]
    """As those of a judge."""
    extract: Callable[[Tensor], np.ndarray]
    """Pictures (N, 3, H, W) uint8 to (N, D) float64."""


def open_features(name: str) -> Features:
    """Features by name: "tinysd", or "transformers:" and the folder or hub name of an image model.

    ValueError for any other name, Inception's among them.
    """
    if name == "tinysd":
        return _tinysd_features()
    if name.startswith(TRANSFORMERS) and name != TRANSFORMERS:
        return _transformers_features(name)
    if name in ("inception", "fid", "kid"):
        raise ValueError(f"features {name!r}: {INCEPTION}")
    raise ValueError(
        f"no features {name!r}{did_you_mean(name, ['tinysd', 'inception'])}; allowed: tinysd, "
        f"{TRANSFORMERS}FOLDER or {TRANSFORMERS}NAME"
    )


def _tinysd_features() -> Features:
    """The TinySD judge's: mean and maximum of its last maps over the picture."""
    judge = TinySDJudge()

    @torch.inference_mode()
    def extract(pictures: Tensor) -> np.ndarray:
        parts = [
            judge.judge.features(part.float() / 127.5 - 1) for part in check_pictures(pictures).split(BATCH)
        ]
        return torch.cat(parts).double().numpy()

    facts = {key: value for key, value in judge.facts().items() if key != "classes"}
    return Features({**facts, "layer": "pooled, mean and maximum"}, extract)


def _transformers_features(name: str) -> Features:
    """The pooled output of an image model; of CLIP the projected embedding."""
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

    model = name.removeprefix(TRANSFORMERS)
    folder = model_folder(model, f"features {name!r}")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    is_clip = config.model_type in ("clip", "clip_vision_model")
    loaded = (CLIPVisionModelWithProjection if is_clip else AutoModel).from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False
    )
    network = loaded.eval().requires_grad_(False).to(fast_device())
    layer = "image_embeds" if is_clip else "pooler_output"
    processor = image_processor(folder)

    @torch.inference_mode()
    def extract(pictures: Tensor) -> np.ndarray:
        parts = []
        for arrays in batches(pictures):
            pixels = processor(images=arrays, return_tensors="pt")["pixel_values"].to(network.device)
            pooled = getattr(network(pixel_values=pixels), layer, None)
            if pooled is None:
                raise ValueError(f"features {name!r}: the model has no {layer}; give one that pools, as ViT")
            parts.append(pooled.flatten(1).double().cpu().numpy())
        return np.concatenate(parts)

    return Features({"name": name, **folder_facts(model, folder), "layer": layer}, extract)
