"""A LoRA from a full fine-tune (or a DoRA): the best approximation of its change at a given rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from safetune.export.adapters import save_layers
from safetune.export.layers import Layers, LoraLayer, apply_layers
from safetune.export.probe import save_probe
from safetune.export.run import check_output, read_run
from safetune.files import replace_folder, write_json


def extract_adapter(run_folder: Path, out: Path, rank: int, force: bool = False) -> dict[str, Any]:
    """Write a run folder with a LoRA of `rank` in place of a run's weights; returns what it lost.

    `error` is the share of the change that is lost (Frobenius norms over all weights, also those that a LoRA
    cannot hold), `worst_layer` the layer that loses most, `worst_error` its share, and `output_error` the
    share of the change of the denoiser's outputs. Raises ValueError for a rank below 1 and a folder in use.
    """
    run = read_run(run_folder)
    if rank < 1:
        raise ValueError(f"rank {rank}: give 1 or more")
    check_output(out, force, [run_folder, Path(run.model)])
    base, trained = run.load_base(), run.load_base()
    probe = run.read_probe(base)
    plain = probe.run(base)
    run.merge_into(trained)
    wanted = probe.run(trained)
    layers, lost = low_rank(base.denoiser, trained.denoiser, rank)
    apply_layers(base.denoiser, layers)
    output = probe.run(base)
    lost["output_error"] = float((output - wanted).norm() / (wanted - plain).norm())
    facts = {**run.facts, "config": {**run.config, "method": "lora", "rank": rank, "alpha": rank}}
    facts["extracted"] = {"from": str(run_folder), "method": run.method, "rank": rank, **lost}
    with replace_folder(out) as folder:
        save_layers(layers, base.denoiser, folder / "adapter")
        save_probe(replace(probe, output=output, plain=plain, exact=True), layers, folder / "adapter")
        write_json(folder / "run.json", facts)
    return lost


@torch.no_grad()
def low_rank(base: ModelMixin, trained: ModelMixin, rank: int) -> tuple[Layers, dict[str, Any]]:
    """Layers of `rank` from the change of each linear or convolution weight, and the error."""
    before, after = base.state_dict(), trained.state_dict()
    carriers = {n for n, m in base.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    layers, shares, lost, total = {}, {}, 0.0, 0.0
    for key, value in after.items():
        change = value.float() - before[key].float()
        squared = float(change.double().pow(2).sum())
        total += squared
        name, _, kind = key.rpartition(".")
        if not squared or kind != "weight" or name not in carriers:
            lost += squared
            continue
        layers[name] = truncated(change, rank)
        rest = float((change.flatten(1) - layers[name].delta()).double().pow(2).sum())
        shares[name] = (rest / squared) ** 0.5
        lost += rest
    if not layers:
        raise ValueError("the trained weights are those of the base model: there is nothing to extract")
    worst = max(shares, key=lambda name: shares[name])
    return layers, {"error": (lost / total) ** 0.5, "worst_layer": worst, "worst_error": shares[worst]}


def truncated(change: Tensor, rank: int) -> LoraLayer:
    """The change's largest singular values, halved between A and B; zeros fill it up to `rank`."""
    flat = change.flatten(1)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    up, down = torch.zeros(len(flat), rank), torch.zeros(rank, flat.shape[1])
    up[:, :kept], down[:kept] = left[:, :kept] * root, root[:, None] * right[:kept]
    if change.dim() == 4:
        return LoraLayer(down.view(rank, *change.shape[1:]), up[:, :, None, None])
    return LoraLayer(down, up)
