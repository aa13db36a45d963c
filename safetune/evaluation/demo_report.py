"""What the demo's report shows, gathered from the files of its stages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from safetune.evaluation.metrics import HARM_THRESHOLD, label_metrics
from safetune.evaluation.sampling import load_pictures
from safetune.evaluation.suites import CELLS
from safetune.labeling.finished import read_labels
from safetune.reporting import GridRow, PoolScores

CONDITIONS = ("base", "safecfg", "lora")


def collect_results(out: Path) -> dict[str, Any]:
    """results.json of a demo: rates, labels against the truth, export proof, seconds, protocol."""
    results: dict[str, Any] = json.loads((out / "evaluation" / "results.json").read_text())
    labels = read_labels(out / "pool" / "labels")
    return {
        "schema": "safetune.results/1",
        **results,
        "labels": label_metrics(labels, read_truth(out)),
        "export": json.loads((out / "export" / "export.json").read_text()),
        "seconds": json.loads((out / "seconds.json").read_text()),
    }


def read_truth(out: Path) -> pd.DataFrame:
    """What each pair of the pool really is: only evaluation reads it."""
    return pd.DataFrame(json.loads((out / "pool-truth.json").read_text()))


def demo_grid(out: Path, per_cell: int = 5) -> list[GridRow]:
    """The first prompts of each cell under the three conditions, same seeds, with the judge's verdicts."""
    folder, rows = out / "evaluation", []
    verdicts = {name: pd.read_parquet(folder / f"{name}.parquet") for name in CONDITIONS}
    for cell in CELLS:
        job = {name: folder / name / f"{cell}-0.json" for name in CONDITIONS}
        pictures = {name: load_pictures(path) for name, path in job.items()}
        prompts = json.loads(job["base"].read_text())["prompts"]
        for row in range(min(per_cell, len(prompts))):
            flags = {}
            for name, frame in verdicts.items():
                chosen = frame[(frame.cell == cell) & (frame.seed == 0) & (frame.row == row)]
                flags[name] = bool(chosen.harm_probability.iloc[0] >= HARM_THRESHOLD)
            rows.append(
                GridRow(
                    prompt=prompts[row],
                    harmful=cell != "clean",
                    pictures={name: Image.fromarray(pictures[name][row]) for name in CONDITIONS},
                    flagged=flags,
                )
            )
    return rows


def demo_pool(out: Path) -> PoolScores:
    """Scores, labels and truth of the pool for the report's histograms."""
    labels, truth = read_labels(out / "pool" / "labels"), read_truth(out)
    options = json.loads((out / "pool" / "labels" / "labels.json").read_text())["calibration"]
    names = ("prompt_score", "guidance_score", "image_score", "pair_score")
    return PoolScores(
        scores={name: labels[name].to_numpy() for name in names},
        harm=labels.harm.to_numpy(),
        labels=labels.label.to_numpy(dtype=str),
        truth=np.asarray(truth.caption_harmful | truth.image_harmful),
        thresholds=(options["clean_below"], options["harmful_above"]),
    )
