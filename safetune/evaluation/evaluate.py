"""Measure methods on a suite with an independent judge: pictures, raw scores, rates, one results.json."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from safetune.backbone import load_backbone
from safetune.backbone.loading import resolve_model
from safetune.evaluation.drift import clean_drift
from safetune.evaluation.grids import write_grids
from safetune.evaluation.judges import join_scores, open_features, write_scores
from safetune.evaluation.judging import Judging, open_judging
from safetune.evaluation.methods import Method
from safetune.evaluation.metrics import rate
from safetune.evaluation.presets import count, generation_differences
from safetune.evaluation.sampling import (
    Job,
    SamplingOptions,
    file_sha256,
    load_pictures,
    plan_jobs,
    run_jobs,
    weights_sha256,
)
from safetune.evaluation.suites import Cell, Suite, cell_kinds, tinysd_suite
from safetune.evaluation.utility import scene_distances
from safetune.files import write_json
from safetune.precision import resolve_dtype
from safetune.runs import versions

logger = logging.getLogger(__name__)
SCHEMA = "safetune.results/2"
SCHEDULER = ("_class_name", "prediction_type", "beta_schedule", "timestep_spacing")
"""What is told of a scheduler."""
OTHER_OPTIONS = ("processes", "batch_size", "seeds", "scheduler")
"""Sampling options that no number depends on, or that are told otherwise."""


def evaluate(
    folder: Path,
    methods: Sequence[Method],
    model: str = "tinysd",
    suite: Suite | None = None,
    judging: Judging | None = None,
    options: SamplingOptions | None = None,
    concepts: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw and judge every method; pictures already made are kept. Returns and writes results.json.

    The suite is TinySD's of 64 prompts a cell, and TinySD's judge judges, unless others are given. `concepts`
    are the words of the harm, for methods that are told them. The first method is what the others drift from.
    ValueError before anything is drawn for two methods of one name, and what plan_jobs refuses.
    """
    options, suite, judging = (
        options or SamplingOptions(),
        suite or tinysd_suite(64),
        judging or open_judging(),
    )
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"methods {', '.join(names)}: give each a name of its own")
    base, backbone = resolve_model(model), None
    if any(method.hgr or method.negative_prompt or method.sld for method in methods):
        backbone = load_backbone(model, dtype=resolve_dtype(options.dtype))
    planned = [
        plan_jobs(method, base, suite.cells, folder, options, backbone, concepts) for method in methods
    ]
    run_jobs([job for jobs in planned for job in jobs], options.process_count())
    features = open_features("tinysd") if "tinysd" in judging.judges else None
    if features is not None:  # both distances see the same pictures, all methods the same reference
        features = replace(features, extract=lru_cache(maxsize=2)(features.extract))
    blocks: dict[str, Any] = {}
    for method, jobs in zip(methods, planned, strict=True):
        block = judge_method(folder / f"{method.name}.parquet", jobs, suite.cells, options.seeds, judging)
        utility = clean_drift(planned[0], jobs, suite.cells, options.seeds)
        if features is not None:
            utility |= scene_distances(jobs, suite.cells, options.seeds, features)
        grid = write_grids(jobs, suite.cells, options.seeds[0])
        facts = method_facts(method, base)
        blocks[method.name] = {"facts": facts, **block, "utility": utility, "grid": grid}
        logger.info("%s: %s", method.name, ", ".join(_shown(block["cells"])))
    results = {
        "schema": SCHEMA,
        "methods": blocks,
        "cell_kinds": cell_kinds(suite.cells),
        "protocol": protocol(model, base, suite, judging, options),
        "versions": versions(),
    }
    write_json(folder / "results.json", results)
    return results


def judge_method(
    raw: Path, jobs: Sequence[Job], cells: Sequence[Cell], seeds: Sequence[int], judging: Judging
) -> dict[str, Any]:
    """Rates and counts of one method; the raw scores of every picture go to the parquet `raw`."""
    rates, counts, places, parts, harm = {}, {}, [], [], {}
    for cell in cells:
        found = [judging.scores(load_pictures(jobs, cell.name, seed), cell) for seed in seeds]
        outcomes = [judging.outcomes(scores, cell) for scores in found]
        together = {key: np.stack([one[key] for one in outcomes]) for key in outcomes[0]}
        rates[cell.name] = {key: rate(values) for key, values in together.items()}
        harm[cell.name] = together["harm_rate"]
        rows = np.arange(len(cell.prompts))
        counts[cell.name] = asdict(count(judging.preset, join_scores(found), np.tile(rows, len(seeds))))
        places += [
            pd.DataFrame({"cell": cell.name, "seed": seed, "row": rows, "harmful": one["harm_rate"]})
            for seed, one in zip(seeds, outcomes, strict=True)
        ]
        parts += found
    write_scores(raw, join_scores(parts), pd.concat(places))
    return {"cells": rates, "categories": category_rates(cells, harm), "counts": counts}


def category_rates(cells: Sequence[Cell], harm: dict[str, np.ndarray]) -> dict[str, Any]:
    """Harm rate by category over all harmful cells; `harm` by cell (seeds, prompts)."""
    asked = [cell for cell in cells if cell.kind == "harmful" and any(cell.categories)]
    if not asked:
        return {}
    category = np.concatenate([np.array(cell.categories) for cell in asked])
    found = np.concatenate([harm[cell.name] for cell in asked], axis=1)
    return {name: rate(found[:, category == name]) for name in sorted(set(category) - {""})}


def method_facts(method: Method, base: str) -> dict[str, Any]:
    """What a method is made of, by hashes."""
    hashes = {
        f"{name}_sha256": None if path is None else file_sha256(sorted(path.glob("*.safetensors")) or [path])
        for name, path in (("adapter", method.adapter), ("denoiser", method.denoiser), ("hgr", method.hgr))
    }
    return {
        "kind": method.kind,
        "weights_sha256": weights_sha256(base, method),
        **hashes,
        "negative_prompt": method.negative_prompt,
        "sld": method.sld,
    }


def protocol(
    model: str, base: str, suite: Suite, judging: Judging, options: SamplingOptions
) -> dict[str, Any]:
    """Everything that a number depends on besides its method."""
    scheduler = json.loads((Path(base) / "scheduler" / "scheduler_config.json").read_text())
    scheduler["_class_name"] = options.scheduler or scheduler["_class_name"]
    return {
        "model": model,
        "suite": {"name": suite.name, "version": suite.version},
        "judge": judging.facts(),
        "otherwise_than_preset": generation_differences(
            judging.preset,
            options.steps,
            options.guidance_scale,
            len(options.seeds),
            scheduler["_class_name"],
        ),
        "counting_unit": "picture",
        "prompts": {cell.name: {"count": len(cell.prompts), "sha256": cell.sha256} for cell in suite.cells},
        "scheduler": ", ".join(
            f"{key.lstrip('_')} {scheduler[key]}" for key in SCHEDULER if key in scheduler
        ),
        **{key: value for key, value in asdict(options).items() if key not in OTHER_OPTIONS},
        "seeds": list(options.seeds),
        "error": "stderr: of the mean over seeds; low, high: 95% bootstrap over prompts",
    }


def by_kind(results: dict[str, Any]) -> dict[str, Any]:
    """The blocks of results.json by method, cells apart by kind: {"harmful": {cell: rates}, "clean": rates}.

    For suites of one clean cell, as TinySD's is: what the demo's report and a card show.
    """
    kinds = results["cell_kinds"]
    return {
        name: {
            "harmful": {cell: rates for cell, rates in block["cells"].items() if kinds[cell] == "harmful"},
            "clean": next((rates for cell, rates in block["cells"].items() if kinds[cell] == "clean"), {}),
        }
        for name, block in results["methods"].items()
    }


def _shown(cells: dict[str, Any]) -> list[str]:
    return [f"{name} {block['harm_rate']['mean']:.1%}" for name, block in cells.items()]
