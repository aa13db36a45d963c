"""Finished runs of tiny models, as recipes/finetune.py leaves them."""

import json
from pathlib import Path

import torch
from peft import LoraConfig

from safetune.backbone import Backbone, load_backbone
from safetune.export.adapters import save_adapter, save_denoiser
from safetune.export.probe import write_probe

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def write_run(folder: Path, model: Path, method: str = "lora", seed: int = 0, rslora: bool = False) -> Path:
    """A run whose adapter has rank 4 and alpha 10, or whose every weight was moved a little (full)."""
    backbone = load_backbone(model)
    torch.manual_seed(seed)
    if method == "full":
        for value in backbone.denoiser.parameters():
            value.data.add_(0.02 * torch.randn_like(value))
    else:
        attach(backbone, method == "dora", rslora)
    weights = folder / ("denoiser" if method == "full" else "adapter")
    (save_denoiser if method == "full" else save_adapter)(backbone.denoiser, weights)
    prompts = backbone.encode_prompts(["a cat", "a dog"])
    write_probe(backbone, backbone.denoiser, prompts, (4, 16, 16), weights)
    config = {"model": str(model), "method": method, "rank": 4, "alpha": 10.0, "hgr": "runs/hgr/hgr"}
    (folder / "run.json").write_text(json.dumps({"config": config}))
    return folder


def attach(backbone: Backbone, dora: bool, rslora: bool) -> None:
    """A LoRA with random B, whose alpha is unlike its rank."""
    backbone.denoiser.add_adapter(
        LoraConfig(r=4, lora_alpha=10, use_dora=dora, use_rslora=rslora, target_modules=TARGETS)
    )
    for name, value in backbone.denoiser.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.05)
        if "magnitude" in name:
            value.data.mul_(1 + 0.1 * torch.rand_like(value))
