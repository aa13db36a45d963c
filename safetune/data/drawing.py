"""Pictures by any diffusers pipeline, a seed for each."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image as Picture
from torch import nn

from safetune.backbone.fingerprint import weights_fingerprint
from safetune.backbone.loading import TINYSD, resolve_model, unused_components
from safetune.files import fingerprint_of
from safetune.latents import silent_diffusers


def load_pipeline(model: str, device: torch.device | str, dtype: torch.dtype) -> DiffusionPipeline:
    """Any text-to-image pipeline: "tinysd" (embedded), a folder in diffusers layout, or a hub name.

    Weights are read from safetensors only, and no code comes with them. Raises ValueError for a path that is
    no such folder and for a pipeline that takes neither prompts nor generators.
    """
    path = resolve_model(model)
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise ValueError(
            f"{path} holds no model_index.json: give a folder in diffusers layout, a hub name, or {TINYSD!r}"
        )
    index = DiffusionPipeline.load_config(path)
    pipeline = DiffusionPipeline.from_pretrained(
        path, dtype=dtype, use_safetensors=True, **unused_components(str(index["_class_name"]), index)
    )
    missing = {"prompt", "generator"} - call_options(pipeline)
    if missing:
        raise ValueError(
            f"{path} is a {type(pipeline).__name__}, whose call takes no {' and no '.join(sorted(missing))}: "
            "give a text-to-image pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def call_options(pipeline: DiffusionPipeline) -> set[str]:
    """Names of what the pipeline's call takes."""
    return set(inspect.signature(pipeline.__call__).parameters)


def load_adapter(pipeline: DiffusionPipeline, path: Path) -> str:
    """Attach a LoRA file; returns its SHA-256.

    ValueError when it is no safetensors file, and when the pipeline takes no LoRA.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"{path}: an adapter is a .safetensors file that exists")
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{type(pipeline).__name__} takes no LoRA: leave --adapter out")
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pipeline_fingerprint(pipeline: DiffusionPipeline) -> str:
    """16 hex digits over the weights of all parts and the scheduler's settings; read it before an adapter."""
    parts: list[object] = [type(pipeline).__name__]
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            parts.append([name, weights_fingerprint(part)])
        elif name == "scheduler":
            settings = {key: str(value) for key, value in part.config.items() if not key.startswith("_")}
            parts.append([name, type(part).__name__, sorted(settings.items())])
    return fingerprint_of(parts)


@torch.no_grad()
def draw_pictures(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, int | float],
) -> list[Picture]:
    """One picture for each prompt and seed; `options` go to the pipeline's call.

    Noise is drawn on the CPU, picture by picture: it is the same on every device and in every batch.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with silent_diffusers():
        output = pipeline(prompt=list(prompts), generator=generators, **options)
    pictures: list[Picture] = output.images
    return pictures
