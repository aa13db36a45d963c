"""What a run of recipes/finetune.py needs, in a tiny size: labelled pairs, a redirector, options."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from safetune.backbone import load_backbone
from safetune.files import ADAPTER_FILE, write_json, write_parquet
from safetune.hgr import HGR
from safetune.labeling.finished import SCORES
from safetune.tinysd.datasets import pool_scenes, write_pool
from tests.recipes.conftest import read_lines

METHODS = {
    "lora": {"method": "lora", "alpha": 2, "lr": 3e-4},
    "full": {"method": "full", "lr": 3e-5},
}
"""Options with which runs can be compared.

AdamW divides a gradient by its size. Where that is next to nothing, rounding decides which way a weight
moves, by lr times alpha / rank: both are small here.
"""


def build_redirector(model: Path) -> HGR:
    """An HGR of random weights for a tiny model of any family."""
    torch.manual_seed(0)
    backbone = load_backbone(model)
    null = backbone.null()
    hgr = HGR(
        null.embeds.shape[2],
        null.embeds.shape[1],
        width=32,
        pooled_width=0 if null.pooled is None else null.pooled.shape[1],
        base_fingerprint=backbone.fingerprint,
        concepts=["knife", "bomb"],
        categories=["weapons", "explosives"],
    )
    torch.nn.init.normal_(hgr.project_out.weight, std=0.1)
    hgr.prototypes.normal_()
    return hgr


def write_labelled_pool(pool: Path) -> None:
    """20 pairs of TinySD's world with labels as the labeler writes them.

    They come from the truth: harm of the caption, or else of the picture.
    """
    write_pool(pool, pool.with_name("truth.json"), count=20)
    scenes = pool_scenes(20)
    harmful = [text.harmful or picture.harmful for text, picture in scenes]
    frame = pd.DataFrame(
        {
            "key": [f"{number:06d}.png" for number in range(20)],
            "text": [text.caption for text, _ in scenes],
            **dict.fromkeys(SCORES, 1.0),
            "evidence": ["prompt" if text.harmful else "image" for text, _ in scenes],
            "concept": "knife",
            "harm": np.where(harmful, 0.99, 0.01),
            "label": np.where(harmful, "harmful", "clean"),
        }
    )
    write_parquet(frame, pool / "labels" / "part-00000.parquet")
    write_json(pool / "labels" / "labels.json", {})


def settings_of(pool: Path, hgr: Path, model: Path) -> dict[str, object]:
    """Options of a run of 4 steps, but for its output_dir."""
    return {
        "data": pool,
        "hgr": hgr,
        "model": model,
        "steps": 4,
        "batch_size": 4,
        "rank": 2,
        "picture_steps": 1,
        "mixed_precision": "no",
    }


def result_of(run: Path) -> dict[str, torch.Tensor]:
    """The adapter that a run wrote, or the denoiser of method full."""
    adapter = run / "adapter" / ADAPTER_FILE
    return load_file(adapter if adapter.exists() else run / "denoiser" / SAFETENSORS_WEIGHTS_NAME)


def assert_close_runs(one: Path, other: Path) -> None:
    """Losses, their parts and gradient norms to 1e-4 of their size, weights to 1e-5 of theirs."""
    lines, other_lines = (read_lines(run / "metrics.jsonl") for run in (one, other))
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line == pytest.approx(other_line, rel=1e-4, abs=1e-8)
    weights, others = result_of(one), result_of(other)
    assert weights.keys() == others.keys()
    flat, other_flat = (torch.cat([state[name].flatten() for name in weights]) for state in (weights, others))
    assert (flat - other_flat).norm() <= 1e-5 * flat.norm()


def assert_same_runs(one: Path, other: Path) -> None:
    """The same metrics and weights, bit for bit."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    weights, others = result_of(one), result_of(other)
    assert weights.keys() == others.keys()
    assert all(value.equal(others[name]) for name, value in weights.items())
