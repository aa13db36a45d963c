"""What the demo's report shows, gathered from the files of its stages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from safetune.evaluation.evaluate import by_kind
from safetune.evaluation.metrics import label_metrics
from safetune.evaluation.sampling import first_pictures, first_verdicts
from safetune.labeling.finished import read_labels, read_summary
from safetune.reporting import GridRow, PoolScores

CONDITIONS = ("base", "safecfg", "lora")


def collect_results(out: Path) -> dict[str, Any]:
    """results.json of a demo: rates, labels against the truth, export proof, seconds, protocol."""
    results = read_results(out)
    labels = read_labels(out / "pool" / "labels")
    return {
        "schema": "safetune.demo/1",
        **by_kind(results),
        "protocol": {**results["protocol"], "versions": results["versions"]},
        "labels": label_metrics(labels, read_truth(out)),
        "export": json.loads((out / "export" / "export.json").read_text()),
        "seconds": json.loads((out / "seconds.json").read_text()),
    }


def read_results(out: Path) -> dict[str, Any]:
    """results.json of the demo's evaluation."""
    results: dict[str, Any] = json.loads((out / "evaluation" / "results.json").read_text())
    return results


def read_truth(out: Path) -> pd.DataFrame:
    """What each pair of the pool really is: only evaluation reads it."""
    return pd.DataFrame(json.loads((out / "pool-truth.json").read_text()))


def demo_grid(out: Path, per_cell: int = 5) -> list[GridRow]:
    """The first prompts of each cell under the three conditions, same seeds, with the judge's verdicts."""
    folder, rows = out / "evaluation", []
    for cell, kind in read_results(out)["cell_kinds"].items():
        drawn = {name: first_pictures(folder, name, cell) for name in CONDITIONS}
        flags = {name: first_verdicts(folder, name, cell) for name in CONDITIONS}
        prompts = drawn["base"][0]
        for row in range(min(per_cell, len(prompts))):
            rows.append(
                GridRow(
                    prompt=prompts[row],
                    harmful=kind == "harmful",
                    pictures={name: Image.fromarray(drawn[name][1][row]) for name in CONDITIONS},
                    flagged={name: flags[name][row] for name in CONDITIONS},
                )
            )
    return rows


def demo_pool(out: Path) -> PoolScores:
    """Scores, labels and truth of the pool for the report's histograms."""
    labels, truth = read_labels(out / "pool" / "labels"), read_truth(out)
    options = read_summary(out / "pool" / "labels")["calibration"]
    names = ("prompt_score", "guidance_score", "image_score", "pair_score")
    return PoolScores(
        scores={name: labels[name].to_numpy() for name in names},
        harm=labels.harm.to_numpy(),
        labels=labels.label.to_numpy(dtype=str),
        truth=np.asarray(truth.caption_harmful | truth.image_harmful),
        thresholds=(options["clean_below"], options["harmful_above"]),
    )
