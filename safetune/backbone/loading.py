"""Loading a backbone from a diffusers folder, a hub name or a single file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import safe_open

from safetune.backbone.base import Backbone
from safetune.backbone.sd3 import StableDiffusion3Backbone
from safetune.backbone.sdxl import StableDiffusionXLBackbone
from safetune.backbone.stable_diffusion import StableDiffusionBackbone

TINYSD = "tinysd"
TINYSD_DIR = Path(__file__).parent.parent / "tinysd" / "weights" / "pipeline"

FAMILIES: dict[str, tuple[type[DiffusionPipeline], Callable[[DiffusionPipeline], Backbone], str]] = {
    "StableDiffusionPipeline": (StableDiffusionPipeline, StableDiffusionBackbone, "cond_stage_model."),
    "StableDiffusionXLPipeline": (
        StableDiffusionXLPipeline,
        StableDiffusionXLBackbone,
        "conditioner.embedders.1.",
    ),
    "StableDiffusion3Pipeline": (
        StableDiffusion3Pipeline,
        StableDiffusion3Backbone,
        "model.diffusion_model.joint_blocks.",
    ),
}
"""Pipelines by class name: diffusers' class, ours, and the prefix that only its single files have."""

T5_PREFIX = "text_encoders.t5xxl."
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def load_backbone(
    model: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    variant: str | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
) -> Backbone:
    """Load and freeze a pipeline: "tinysd" (embedded), a folder in diffusers layout, a hub name or a file.

    Weights are read from safetensors only. `variant` picks weight files by their infix ("fp16"), `revision` a
    commit of a hub name. A single .safetensors file holds no configuration: `config` is the folder or hub
    name of a pipeline of the same architecture and prediction type. Without it diffusers takes the hub's for
    the family, by which every SD 2.x file predicts v and every SDXL file epsilon.

    Raises ValueError for an unknown family, for a folder without model_index.json, for a pickled file.
    """
    path = resolve_model(model)
    if Path(path).suffix == ".safetensors" or Path(path).suffix in PICKLES:
        if variant is not None or revision is not None:
            raise ValueError(f"{path} is a single file: variant and revision are for folders and hub names")
        name, pipeline = load_file(path, dtype, config)
    elif config is not None:
        raise ValueError(f"{path} brings its own configuration: config is for single .safetensors files")
    else:
        name, pipeline = load_folder(path, dtype, variant, revision)
    pipeline.set_progress_bar_config(disable=True)
    return FAMILIES[name][1](pipeline.to(device))


def load_folder(
    path: str, dtype: torch.dtype, variant: str | None, revision: str | None
) -> tuple[str, DiffusionPipeline]:
    """Pipeline's class name and pipeline of a folder or hub name."""
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise ValueError(
            f"{path} holds no model_index.json: give a folder in diffusers layout, a .safetensors file, or "
            f"{TINYSD!r}"
        )
    index = DiffusionPipeline.load_config(path, revision=revision)
    name = index["_class_name"]
    if name not in FAMILIES:
        raise ValueError(f"{path} is a {name}; supported pipelines: {', '.join(FAMILIES)}")
    pipeline = FAMILIES[name][0].from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        variant=variant,
        revision=revision,
        **unused_components(name, index),
    )
    return name, pipeline


def load_file(path: str, dtype: torch.dtype, config: str | Path | None) -> tuple[str, DiffusionPipeline]:
    """Pipeline's class name and pipeline of a single file in the original layout (A1111, ComfyUI)."""
    if Path(path).suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code when it is read: give a .safetensors file")
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
    names = [name for name, family in FAMILIES.items() if any(key.startswith(family[2]) for key in keys)]
    if not names:
        raise ValueError(
            f"{path} holds no text-to-image model that is known, or no text encoder; supported pipelines: "
            f"{', '.join(FAMILIES)}"
        )
    index = {} if config is None else DiffusionPipeline.load_config(config)
    if index and index["_class_name"] != names[0]:
        raise ValueError(f"{path} is a {names[0]} but config {config} is of a {index['_class_name']}")
    absent = unused_components(names[0], index)
    if names[0] == "StableDiffusion3Pipeline" and not any(key.startswith(T5_PREFIX) for key in keys):
        absent |= {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = FAMILIES[names[0]][0].from_single_file(
        path, config=None if config is None else str(config), dtype=dtype, **absent
    )
    prediction = pipeline.scheduler.config.get("prediction_type")
    if "v_pred" in keys and prediction != "v_prediction":
        raise ValueError(
            f"{path} says that it predicts v, the configuration it was loaded with says {prediction}: give "
            "`config`, a pipeline folder whose scheduler has prediction_type v_prediction"
        )
    return names[0], pipeline


def unused_components(name: str, index: dict[str, Any]) -> dict[str, Any]:
    """Components to pass as None: those that the pipeline was saved without, and the safety checker.

    diffusers asks for the first by name; nothing here looks at the second, which weighs 1.2 GB.
    """
    absent: dict[str, Any] = {key: None for key, value in index.items() if value == [None, None]}
    if name == "StableDiffusionPipeline":
        absent |= {"safety_checker": None, "requires_safety_checker": False}
    return absent


def resolve_model(model: str | Path) -> str:
    """The folder of the embedded TinySD for "tinysd"; any other name as it is."""
    return str(TINYSD_DIR) if str(model) == TINYSD else str(model)
