"""`safetune recount`: an evaluation's raw scores by another rule, without drawing or judging again."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from safetune.evaluation.finished import read_evaluation
from safetune.evaluation.judges import pick_scores, read_scores
from safetune.evaluation.presets import count, generation_differences, open_preset, preset_facts
from safetune.files import write_json


def recount(folder: Path, preset_name: str) -> tuple[Path, dict[str, Any]]:
    """Counts by method and cell, and the file beside results.json that holds them with the preset.

    ValueError for a folder without an evaluation, an unknown preset, and one that asks for a judge, a class
    or a threshold that the raw scores do not have.
    """
    evaluation, preset = read_evaluation(folder), open_preset(preset_name)
    counted: dict[str, Any] = {}
    for name in evaluation.methods:
        scores, places = read_scores(folder / f"{name}.parquet")
        cells = {}
        for cell in evaluation.kinds:
            rows = np.flatnonzero((places.cell == cell).to_numpy())
            own = pick_scores(scores, rows)
            cells[cell] = asdict(count(preset, own, places.row.to_numpy()[rows]))
        counted[name] = cells
    told = evaluation.protocol
    scheduler = told["scheduler"].removeprefix("class_name ").split(",")[0]
    facts = {
        "preset": preset_facts(preset),
        "otherwise_than_preset": generation_differences(
            preset, told["steps"], told["guidance_scale"], len(told["seeds"]), scheduler
        ),
        "protocol": told,
        "methods": counted,
    }
    file = folder / f"counts-{preset_name}.json"
    write_json(file, facts)
    return file, counted
