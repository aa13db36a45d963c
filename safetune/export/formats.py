"""Adapters by the key names of diffusers, of kohya's sd-scripts (A1111, Forge) and of ComfyUI."""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch
from diffusers import ModelMixin, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from safetune.export.layers import Layers, LoraLayer, has_magnitudes
from safetune.export.names import original_names

LORA_FORMATS = ("diffusers", "kohya", "comfyui")
PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".dora_scale": "magnitude",
    ".alpha": "alpha",
}
"""Ends of keys, by what the tensor is."""
KOHYA, COMFYUI = "lora_unet_", "diffusion_model."


def component(denoiser: ModelMixin) -> str:
    """The denoiser's name in its pipeline."""
    return "transformer" if isinstance(denoiser, SD3Transformer2DModel) else "unet"


def lora_tensors(layers: Layers, denoiser: ModelMixin, name: str) -> dict[str, Tensor]:
    """Tensors by the keys of a format; ValueError for what it cannot hold."""
    if name == "diffusers":
        return diffusers_tensors(layers, denoiser)
    if has_magnitudes(layers):
        refuse_dora(name)
    if name == "kohya":
        named = layers if has_diffusers_names(denoiser) else original_layers(layers, denoiser)
        keyed = {kohya_stem(path): layer for path, layer in named.items()}
        ends = (".lora_down.weight", ".lora_up.weight")
    else:
        keyed = {COMFYUI + path: layer for path, layer in original_layers(layers, denoiser).items()}
        ends = (".lora_A.weight", ".lora_B.weight")
    tensors = {}
    for stem, layer in keyed.items():
        tensors[stem + ends[0]] = layer.down.contiguous()
        tensors[stem + ends[1]] = layer.up.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(layer.rank))
    return tensors


def refuse_dora(name: str) -> NoReturn:
    """ValueError for a format that has no agreed place for DoRA's magnitudes."""
    raise ValueError(
        f"format {name} cannot hold a DoRA: A1111, ComfyUI and PEFT norm its magnitudes each in another way. "
        "Export it as diffusers, merged or single-file, or make a LoRA of it with `safetune extract`"
    )


def diffusers_tensors(layers: Layers, denoiser: ModelMixin) -> dict[str, Tensor]:
    """Tensors by the keys that diffusers' load_lora_weights reads for the denoiser."""
    tensors = {}
    for name, layer in layers.items():
        stem = f"{component(denoiser)}.{name}"
        tensors[f"{stem}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"{stem}.lora_B.weight"] = layer.up.contiguous()
        if layer.magnitude is not None:
            tensors[f"{stem}.lora_magnitude_vector"] = layer.magnitude.contiguous()
    return tensors


def has_kohya_reader(denoiser: ModelMixin) -> bool:
    """Whether diffusers reads kohya's files of the denoiser; it knows those of SD 3 not at all."""
    return component(denoiser) == "unet"


def has_diffusers_names(denoiser: ModelMixin) -> bool:
    """Whether sd-scripts trains the denoiser in diffusers' layout: SD 1.x and 2.x, neither SDXL nor SD 3."""
    return component(denoiser) == "unet" and denoiser.config.addition_embed_type is None


def kohya_stem(path: str) -> str:
    """Key of a layer without its end."""
    return KOHYA + path.replace(".", "_")


def original_layers(layers: Layers, denoiser: ModelMixin) -> Layers:
    """Layers by original path; the parts of a fused weight become one layer with a block-diagonal B."""
    names = original_names(denoiser)
    groups: dict[str, dict[int, LoraLayer]] = {}
    for path, layer in layers.items():
        if path not in names:
            raise ValueError(f"layer {path} has no name in the original layout: give diffusers or merged")
        groups.setdefault(names[path].path, {})[names[path].part] = layer
    fused = {name.path for name in names.values() if name.fused}
    return {path: fuse(parts) if path in fused else parts[0] for path, parts in groups.items()}


def fuse(parts: Mapping[int, LoraLayer]) -> LoraLayer:
    """One layer of a query-key-value weight from those of its thirds; a missing third stays as it is."""
    height, rank = len(next(iter(parts.values())).up), sum(layer.rank for layer in parts.values())
    up, column = torch.zeros(3 * height, rank), 0
    for part, layer in parts.items():
        up[height * part : height * (part + 1), column : column + layer.rank] = layer.up
        column += layer.rank
    return LoraLayer(torch.cat([layer.down for layer in parts.values()]), up)


def split_layers(layers: Layers, denoiser: ModelMixin) -> Layers:
    """The way back of original_layers; a third that changes nothing is left out.

    A layer that is not fused may stand under its module's path too.
    """
    found = {}
    for path, name in original_names(denoiser).items():
        layer = layers.get(name.path, layers.get(path))
        if layer is None:
            continue
        up = layer.up.chunk(3)[name.part] if name.fused else layer.up
        if bool(up.any()) or not name.fused:
            found[path] = LoraLayer(layer.down, up, layer.magnitude)
    return found


def split_key(key: str) -> tuple[str, str] | None:
    """Stem and part of a key; None when its end is unknown."""
    end = next((end for end in PARTS if key.endswith(end)), None)
    return None if end is None else (key.removesuffix(end), PARTS[end])


def stems(denoiser: ModelMixin, name: str) -> dict[str, str]:
    """Every stem that a file of the format may hold: stem -> path of the module, the original's if fused."""
    modules = [n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if name == "diffusers":
        return {f"{component(denoiser)}.{path}": path for path in modules}
    names = original_names(denoiser)
    layers = {item.path: item.path if item.fused else path for path, item in names.items()}
    if name == "comfyui":
        return {COMFYUI + original: layer for original, layer in layers.items()}
    found = {kohya_stem(original): layer for original, layer in layers.items()}
    return found | {kohya_stem(path): path for path in modules if component(denoiser) == "unet"}


def read_original(file: Path, denoiser: ModelMixin, name: str) -> Layers:
    """Layers of a comfyui file, or of a kohya file of SD 3, as ComfyUI reads them by its key map.

    B times alpha / rank, or times 1 where there is no alpha. Keys outside of the map are an error here.
    """
    known = stems(denoiser, name)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        stem, part = split_key(key) or (key, "")
        if stem not in known or not part:
            raise ValueError(f"{file}: ComfyUI has no place for the key {key}")
        parts.setdefault(known[stem], {})[part] = value.float()
    layers = {}
    for path, found in parts.items():
        rank = len(found["down"])
        scale = float(found["alpha"]) / rank if "alpha" in found else 1.0
        layers[path] = LoraLayer(found["down"], found["up"] * scale, found.get("magnitude"))
    return split_layers(layers, denoiser)
