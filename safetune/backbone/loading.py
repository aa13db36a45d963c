"""Loading a backbone from a diffusers folder or a hub name."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from safetune.backbone.base import Backbone
from safetune.backbone.stable_diffusion import StableDiffusionBackbone

TINYSD = "tinysd"
TINYSD_DIR = Path(__file__).parent.parent / "tinysd" / "weights" / "pipeline"

FAMILIES = {"StableDiffusionPipeline": (StableDiffusionPipeline, StableDiffusionBackbone)}


def load_backbone(
    model: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Backbone:
    """Load and freeze a pipeline: "tinysd" (embedded), a folder in diffusers layout, or a hub name.

    Raises ValueError for a folder without model_index.json or of an unknown family.
    """
    path = resolve_model(model)
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise ValueError(
            f"{path} holds no model_index.json: give a folder in diffusers layout, or {TINYSD!r}"
        )
    config = DiffusionPipeline.load_config(path)
    name = config["_class_name"]
    if name not in FAMILIES:
        raise ValueError(f"{path} is a {name}; supported pipelines: {', '.join(FAMILIES)}")
    pipeline_class, backbone_class = FAMILIES[name]
    pipeline = pipeline_class.from_pretrained(path, dtype=dtype, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return backbone_class(pipeline.to(device))


def resolve_model(model: str | Path) -> str:
    """The folder of the embedded TinySD for "tinysd"; any other name as it is."""
    return str(TINYSD_DIR) if str(model) == TINYSD else str(model)
