"""Models as their configs describe them, built without weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from torch import nn

from safetune.backbone.loading import TINYSD, resolve_model

TABLE = Path(__file__).parent / "architectures.yaml"

CLASSES = {
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "SD3Transformer2DModel": diffusers.SD3Transformer2DModel,
    "AutoencoderKL": diffusers.AutoencoderKL,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    "T5EncoderModel": transformers.T5EncoderModel,
}
"""What the parts of the supported pipelines can be."""

T5_TOKENS = 256
"""Tokens of T5 behind those of CLIP: Stable Diffusion 3 reads as many with zeros in their place."""


@dataclass(frozen=True)
class Architecture:
    """A pipeline's parts by name, each as its config.json says."""

    name: str
    parts: dict[str, dict[str, Any]]

    @property
    def denoiser_part(self) -> str:
        """Name of the denoiser among the parts."""
        return "unet" if "unet" in self.parts else "transformer"

    @property
    def encoder_parts(self) -> list[str]:
        """Names of the text encoders."""
        return [part for part in self.parts if part.startswith("text_encoder")]

    def build(self, part: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """That part on the meta device: shapes without numbers."""
        config = self.parts[part]
        with torch.device("meta"):
            if "_class_name" in config:
                module: nn.Module = CLASSES[config["_class_name"]].from_config(config)
            else:
                kind = CLASSES[config["architectures"][0]]
                module = kind(kind.config_class(**config))
        return nn.Module.to(module, dtype).requires_grad_(False)  # diffusers' own `to` warns

    @property
    def family(self) -> str:
        """The backbone's name of this kind of pipeline."""
        if self.denoiser_part == "transformer":
            return "stable-diffusion-3"
        return "stable-diffusion-xl" if "text_encoder_2" in self.parts else "stable-diffusion"

    @property
    def resolution(self) -> int:
        """Pixels a side that the model was trained for."""
        return int(self.parts[self.denoiser_part]["sample_size"]) * self.factor

    @property
    def factor(self) -> int:
        """Pixels a side of one latent pixel."""
        return 2 ** (len(self.parts["vae"]["block_out_channels"]) - 1)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture of `resolution` pixels a side."""
        side = resolution // self.factor
        return int(self.parts["vae"]["latent_channels"]), side, side

    @property
    def tokens(self) -> int:
        """Length L of a prompt's embedding."""
        clip = int(self.parts["text_encoder"]["max_position_embeddings"])
        return clip + (T5_TOKENS if self.denoiser_part == "transformer" else 0)


def find_architecture(model: str, name: str | None = None) -> Architecture:
    """The architecture of that name, or that of a model: "tinysd", a folder, or a hub name of the table.

    Raises ValueError for a model that says nothing without a download, with the names that can be given.
    """
    table = yaml.safe_load(TABLE.read_text())
    if name is not None and name not in table:
        raise ValueError(f"architecture {name!r}; allowed: {', '.join(table)}")
    folder = Path(resolve_model(model))
    if name is None and folder.is_dir():
        return folder_architecture(folder, model if model == TINYSD else folder.name)
    for known, parts in table.items():
        models = parts.pop("models")
        if name == known or (name is None and model in models):
            return Architecture(known, parts)
    raise ValueError(
        f"{model} is no folder and not among the models that are known without a download: say what it was "
        f"made from, --architecture {' or '.join(table)}"
    )


def folder_architecture(folder: Path, name: str) -> Architecture:
    """The architecture of a pipeline in diffusers layout; only its config.json files are read."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no model_index.json: give a folder in diffusers layout")
    parts = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/config.json"))}
    known = {part: config for part, config in parts.items() if class_name(config) in CLASSES}
    missing = {"vae", "text_encoder"} - set(known)
    if missing or not {"unet", "transformer"} & set(known):
        raise ValueError(f"{folder} is no Stable Diffusion 1, 2, XL or 3: it holds {', '.join(parts)}")
    return Architecture(name, known)


def class_name(config: dict[str, Any]) -> str:
    """The class that a config.json is of."""
    return str(config.get("_class_name") or (config.get("architectures") or [""])[0])
