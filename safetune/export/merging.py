"""Several adapters as one, by PEFT's methods."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from peft.tuners.lora import LoraModel

from safetune.backbone import load_backbone
from safetune.export.adapters import attached_layers, save_layers
from safetune.export.layers import Layers, apply_layers, has_magnitudes
from safetune.export.probe import default_probe, save_probe
from safetune.export.proof import load_adapter
from safetune.export.run import check_output
from safetune.export.verification import detect_format
from safetune.files import replace_folder, write_json

PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", "linear", "svd", *PRUNING, *(f"{name}_svd" for name in PRUNING))
"""PEFT's combination types. `cat` and `svd` add the updates B A, `cat` exactly with the ranks added; `linear`
adds A and B apart, which is another thing."""


def merge_adapters(
    files: Sequence[Path],
    out: Path,
    model: str,
    weights: Sequence[float],
    method: str = "cat",
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    force: bool = False,
) -> int:
    """Write a run folder with one LoRA made of several, for `safetune export`; returns its rank.

    `density` is the share of values that the pruning methods keep (ties, dare, magnitude_prune), `rank` the
    rank of the svd ones, `seed` that of dare's draws. Raises ValueError for arguments that do not fit.
    """
    check_arguments(files, out, weights, method, density, force)
    adapters = [read_file(file, model) for file in files]
    backbone = load_backbone(model)
    probe = default_probe(backbone)
    plain = probe.run(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        merged = combine(load_backbone(model).denoiser, adapters, weights, method, density, rank)
    apply_layers(backbone.denoiser, merged)
    found = max(layer.rank for layer in merged.values())
    combined = {
        "files": [str(file) for file in files],
        "weights": list(weights),
        "method": method,
        "density": density,
        "seed": seed,
    }
    config = {"model": model, "method": "lora", "rank": found, "alpha": found}
    with replace_folder(out) as folder:
        save_layers(merged, backbone.denoiser, folder / "adapter")
        save_probe(replace(probe, output=probe.run(backbone), plain=plain), merged, folder / "adapter")
        write_json(folder / "run.json", {"config": config, "combined": combined})
    return found


def check_arguments(
    files: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    method: str,
    density: float | None,
    force: bool,
) -> None:
    """Every mistake that can be seen before anything is loaded."""
    if len(files) < 2 or len(files) != len(weights):
        raise ValueError(
            f"{len(files)} adapters and {len(weights)} weights: give two or more, and as many weights"
        )
    if method not in METHODS:
        raise ValueError(f"method {method}; allowed: {', '.join(METHODS)}")
    if method.startswith(PRUNING) != (density is not None):
        raise ValueError(
            f"method {method} {'takes no density' if density is not None else 'needs --density'}"
        )
    check_output(out, force, files)


def read_file(file: Path, model: str) -> Layers:
    """Layers of an adapter in any of the formats; ValueError for a DoRA."""
    backbone = load_backbone(model)
    layers = load_adapter(file, detect_format(file), backbone)
    if has_magnitudes(layers):
        raise ValueError(f"{file} is a DoRA, which cannot be merged: `safetune extract` makes a LoRA of it")
    return layers


def combine(
    denoiser: ModelMixin,
    adapters: Sequence[Layers],
    weights: Sequence[float],
    method: str,
    density: float | None,
    rank: int | None,
) -> Layers:
    """Attach the adapters to a denoiser, and let PEFT merge them."""
    names = [f"adapter{index}" for index in range(len(adapters))]
    configs = {name: lora_config(layers) for name, layers in zip(names, adapters, strict=True)}
    tuner = LoraModel(denoiser, configs, names[0])
    for name in names[1:]:
        tuner.inject_adapter(denoiser, name)
    modules = dict(denoiser.named_modules())
    for name, layers in zip(names, adapters, strict=True):
        for path, layer in layers.items():
            modules[path].lora_A[name].weight.data.copy_(layer.down)
            modules[path].lora_B[name].weight.data.copy_(layer.up)
    tuner.add_weighted_adapter(
        names, list(weights), "merged", combination_type=method, density=density, svd_rank=rank
    )
    return attached_layers(denoiser, adapter="merged")


def lora_config(layers: Layers) -> LoraConfig:
    """PEFT's configuration of an adapter whose strength is in B."""
    ranks = {path: layer.rank for path, layer in layers.items()}
    largest = max(ranks.values())
    return LoraConfig(
        r=largest, lora_alpha=largest, target_modules=list(layers), rank_pattern=ranks, alpha_pattern=ranks
    )
