"""Adapter files in diffusers' form."""

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from safetune.files import ADAPTER_FILE


def adapter_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by diffusers' names, alpha / rank multiplied into B (then alpha = rank).

    No reader can get the strength wrong this way, with or without metadata. rsLoRA scales by
    alpha / sqrt(rank).
    """
    config: LoraConfig = denoiser.peft_config["default"]  # type: ignore[index]
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
    baked = {}
    for name, value in state.items():
        if re.search(r"lora(_B|\.up)\.", name):
            scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
            value = value.float() * scale
        baked[name] = value.detach().float().cpu().contiguous()
    return baked


def save_adapter(denoiser: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the attached LoRA as pytorch_lora_weights.safetensors; returns its path."""
    layers = {name: value.to(dtype) for name, value in adapter_state(denoiser).items()}
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, weight_name=ADAPTER_FILE, safe_serialization=True
    )
    return folder / ADAPTER_FILE
