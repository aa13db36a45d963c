"""Measure base CFG, SafeCFG and the adapter on TinySD's suite with the independent judge."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from safetune.backbone import load_backbone
from safetune.backbone.loading import resolve_model
from safetune.evaluation.metrics import HARM_THRESHOLD, harm_probability, over_seeds, picture_outcomes
from safetune.evaluation.sampling import SamplingOptions, load_pictures, run_jobs, sample_condition
from safetune.evaluation.suites import Cell, tinysd_suite
from safetune.hgr import HGR
from safetune.runs import versions
from safetune.tinysd.judge import JUDGE_DIR, judge_images, load_judge
from safetune.tinysd.vocabulary import HARMFUL_KEYS


def evaluate(
    folder: Path,
    model: str = "tinysd",
    hgr_folder: Path | None = None,
    adapter: Path | None = None,
    prompts_per_cell: int = 64,
    options: SamplingOptions | None = None,
) -> dict[str, Any]:
    """Sample and judge every condition that has its parts; pictures already made are kept.

    Returns the blocks of results.json: `base`, `safecfg` (with an HGR), `lora` (with an adapter), `protocol`.
    """
    options = options or SamplingOptions()
    base, cells = resolve_model(model), tinysd_suite(prompts_per_cell)
    jobs = {"base": sample_condition("base", base, cells, folder, options)}
    if hgr_folder is not None:
        backbone = load_backbone(model, dtype=getattr(torch, options.dtype))
        hgr = HGR.from_pretrained(hgr_folder).eval()
        jobs["safecfg"] = sample_condition(
            "safecfg", base, cells, folder, options, hgr=hgr, backbone=backbone
        )
    if adapter is not None:
        jobs["lora"] = sample_condition("lora", base, cells, folder, options, adapter=adapter)
    run_jobs([job for condition in jobs.values() for job in condition], options.process_count())
    results: dict[str, Any] = {
        name: judge_condition(name, condition, cells, options.seeds, folder)
        for name, condition in jobs.items()
    }
    results["protocol"] = protocol(model, cells, options)
    return results


def judge_condition(
    name: str, jobs: Sequence[Path], cells: Sequence[Cell], seeds: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Rates of one condition; raw scores of every picture go to <folder>/<name>.parquet."""
    judge, rates, frames = load_judge(), {}, []
    remaining = iter(jobs)
    for cell in cells:
        per_seed = []
        for seed in seeds:
            pictures = (
                torch.from_numpy(load_pictures(next(remaining))).permute(0, 3, 1, 2).float() / 127.5 - 1
            )
            scores = judge_images(judge, pictures)
            outcomes = picture_outcomes(scores, cell.scenes)
            per_seed.append({key: float(value.mean()) for key, value in outcomes.items()})
            frames.append(
                pd.DataFrame(
                    {"cell": cell.name, "seed": seed, "row": np.arange(len(pictures)), **outcomes}
                ).assign(harm_probability=harm_probability(scores))
            )
        keys = ("harm_rate", "subject", "place") + (("object",) if cell.name == "clean" else ())
        rates[cell.name] = {key: over_seeds([values[key] for values in per_seed]) for key in keys}
    pd.concat(frames).to_parquet(folder / f"{name}.parquet", index=False)
    clean = rates.pop("clean")
    return {"harmful": rates, "clean": clean}


def protocol(model: str, cells: Sequence[Cell], options: SamplingOptions) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    weights = (JUDGE_DIR / "model.safetensors").read_bytes()
    return {
        "model": model,
        "judge": {
            "name": "safetune TinySD judge",
            "sha256": hashlib.sha256(weights).hexdigest(),
            "threshold": HARM_THRESHOLD,
            "classes": sorted(HARMFUL_KEYS),
            "rule": "harmful when the summed probability of the harmful object classes reaches the threshold",
        },
        "counting_unit": "picture",
        "prompts": {cell.name: {"count": len(cell.scenes), "sha256": cell.sha256} for cell in cells},
        "scheduler": "DDIMScheduler, eta 0, trailing",
        **{key: value for key, value in asdict(options).items() if key != "processes"},
        "error": "standard error of the mean over seeds",
        "versions": versions(),
    }
