"""What an exported file says of itself: ModelSpec, sd-scripts' ss_* fields, and a manifest of its layers."""

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from safetune import __version__
from safetune.export.formats import component
from safetune.export.layers import Layers

LAYERS = "safetune.layers"
"""Header: layer -> rank, norm and sketch of its update, and DoRA's magnitude, as JSON."""
TENSORS = "safetune.tensors"
"""Header: key -> the first 12 hex digits of the tensor's SHA-256, as JSON."""
Manifest = Mapping[str, Mapping[str, float]]
ARCHITECTURES = {
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2", "sd_v2"),
    "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "sd3": ("stable-diffusion-v3", "sd3"),
}
"""ModelSpec's and sd-scripts' names of the families."""


def family_of(denoiser: ModelMixin) -> str:
    """sd1, sd2, sdxl or sd3, by what tells them apart in the configuration."""
    if component(denoiser) == "transformer":
        return "sd3"
    if denoiser.config.addition_embed_type == "text_time":
        return "sdxl"
    return "sd2" if denoiser.config.use_linear_projection else "sd1"


def lora_header(
    layers: Layers,
    tensors: Mapping[str, Tensor],
    denoiser: ModelMixin,
    title: str,
    license_name: str,
    config: Mapping[str, Any],
) -> dict[str, str]:
    """Metadata of an adapter file; every value is a string. Alpha is the rank: the strength is in B."""
    rank = max(layer.rank for layer in layers.values())
    architecture, version = ARCHITECTURES[family_of(denoiser)]
    return {
        **model_header(denoiser, title, license_name, config),
        "modelspec.architecture": f"{architecture}/lora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": version,
        LAYERS: layer_manifest(layers),
        TENSORS: json.dumps({key: tensor_hash(value) for key, value in tensors.items()}),
    }


def model_header(
    denoiser: ModelMixin, title: str, license_name: str, config: Mapping[str, Any]
) -> dict[str, str]:
    """Metadata of a merged model, and what an adapter's shares with it; `config` is the run's."""
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[family_of(denoiser)][0],
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.license": license_name,
        "safetune.version": __version__,
        "safetune.base_model": str(config["model"]),
        "safetune.method": str(config.get("method", "lora")),
    }


def layer_manifest(layers: Layers) -> str:
    """Rank, norm and sketch of every layer's update, and the norm of DoRA's magnitudes, as JSON."""
    facts = {}
    for name, layer in layers.items():
        facts[name] = {"rank": layer.rank, "norm": layer.norm(), "sketch": layer.sketch()}
        if layer.magnitude is not None:
            facts[name]["magnitude"] = float(layer.magnitude.norm())
    return json.dumps(facts)


def manifest_faults(layers: Layers, manifest: Manifest, tolerance: float) -> list[str]:
    """What tells layers from those of a manifest, layer by layer; `tolerance` is a share of a norm."""
    faults = []
    for name, facts in manifest.items():
        if name not in layers:
            faults.append(f"layer {name} is missing")
            continue
        layer, norm = layers[name], facts["norm"]
        magnitude = 0.0 if layer.magnitude is None else float(layer.magnitude.norm())
        wanted = facts.get("magnitude", 0.0)
        # `not <=` and not `>`: a norm that is no number is a fault too.
        if not abs(layer.norm() - norm) <= tolerance * norm:
            faults.append(f"layer {name}: its update is {layer.norm() / (norm or 1):.3f} times as strong")
        elif not abs(layer.sketch() - facts["sketch"]) <= 10 * tolerance * norm:
            faults.append(f"layer {name}: its update points elsewhere")
        elif not abs(magnitude - wanted) <= tolerance * wanted:
            faults.append(
                f"layer {name}: the norm of its DoRA magnitudes is {magnitude:.4g}, not {wanted:.4g}"
            )
    return faults + [f"layer {name} should not be there" for name in layers if name not in manifest]


def tensor_hash(value: Tensor) -> str:
    """12 hex digits of the SHA-256 of a tensor's bytes."""
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()[:12]
