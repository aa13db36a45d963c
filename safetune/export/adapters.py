"""What a fine-tuning run keeps of its denoiser: a LoRA by diffusers' names, or all weights."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from peft.tuners.lora import LoraLayer as PeftLoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safetune.export.formats import component, diffusers_tensors, split_key
from safetune.export.layers import Layers, LoraLayer
from safetune.files import ADAPTER_FILE

WEIGHT_FILES = "diffusion_pytorch_model{suffix}.safetensors"


def save_adapter(denoiser: nn.Module, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> Path:
    """Write the attached LoRA or DoRA as fp32 pytorch_lora_weights.safetensors; returns its path.

    The scale of each layer (alpha / rank, rsLoRA's alpha / sqrt(rank)) is multiplied into B, so that
    alpha = rank: no reader can get the strength wrong, with or without metadata. Give the gathered
    `state_dict` of a module that is sharded.
    """
    return save_layers(attached_layers(denoiser, state_dict), denoiser, folder)


def save_layers(layers: Layers, denoiser: nn.Module, folder: Path) -> Path:
    """Write layers as save_adapter does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(diffusers_tensors(layers, denoiser), folder / ADAPTER_FILE, metadata={"format": "pt"})
    return folder / ADAPTER_FILE


def save_denoiser(denoiser: nn.Module, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write all weights in fp32 and config.json, as diffusers' from_pretrained reads them."""
    weights = denoiser.state_dict() if state_dict is None else state_dict
    folder.mkdir(parents=True, exist_ok=True)
    full = {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
    save_torch_state_dict(full, folder, filename_pattern=WEIGHT_FILES)
    (folder / "config.json").write_text(denoiser.to_json_string(), encoding="utf-8")  # type: ignore[operator]


def attached_layers(
    denoiser: nn.Module, state_dict: Mapping[str, Tensor] | None = None, adapter: str = "default"
) -> Layers:
    """Layers of the adapter that PEFT has attached under the name `adapter`; RuntimeError without one."""
    if adapter not in getattr(denoiser, "peft_config", {}):
        raise RuntimeError(f"{type(denoiser).__name__} has no adapter named {adapter!r} attached")
    scales = {
        name: module.scaling[adapter]
        for name, module in denoiser.named_modules()
        if isinstance(module, PeftLoraLayer) and adapter in module.scaling
    }
    state = get_peft_model_state_dict(denoiser, state_dict, adapter_name=adapter)
    layers = parse_layers(state, prefix="")
    return {
        name: LoraLayer(layer.down, layer.up * scales[name], layer.magnitude)
        for name, layer in layers.items()
    }


def read_layers(file: Path, denoiser: nn.Module) -> Layers:
    """Layers of an adapter that save_adapter wrote."""
    layers = parse_layers(load_file(file), f"{component(denoiser)}.")
    if not layers:
        raise ValueError(f"{file} holds no adapter of the {component(denoiser)}")
    return layers


def parse_layers(tensors: Mapping[str, Tensor], prefix: str) -> Layers:
    """Layers from keys of diffusers' or PEFT's kind; ValueError for a key or a half that does not fit."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        stem, part = split_key(key) or ("", "alpha")
        if part == "alpha" or not key.startswith(prefix):
            raise ValueError(f"key {key}: expected {prefix}MODULE.lora_A.weight or .lora_B.weight")
        found.setdefault(stem.removeprefix(prefix), {})[part] = value.detach().float().cpu()
    for name, parts in found.items():
        if not {"down", "up"} <= set(parts):
            raise ValueError(f"layer {name} has {', '.join(sorted(parts))} only: A and B are needed")
    return {name: LoraLayer(**parts) for name, parts in found.items()}


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return dict(json.loads(stream.read(size)).get("__metadata__", {}))


def read_denoiser(folder: Path, denoiser: nn.Module) -> None:
    """Load what save_denoiser wrote into a denoiser of the same architecture."""
    trained = type(denoiser).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)  # type: ignore[attr-defined]
    denoiser.load_state_dict(trained.state_dict())
