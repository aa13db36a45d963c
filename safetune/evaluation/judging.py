"""How pictures are judged and counted: a preset's rule on the raw scores of its judges."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safetune.evaluation.judges import ClassScores, Judge, Scores, open_judge
from safetune.evaluation.judges.tinysd import scores_by_head
from safetune.evaluation.metrics import picture_outcomes
from safetune.evaluation.presets import Preset, harmful_pictures, open_preset, preset_facts
from safetune.evaluation.suites import Cell

TINYSD_PRESET = "tinysd@0.5"


@dataclass(frozen=True)
class Judging:
    """A preset and the judges that it asks for, by their names."""

    preset: Preset
    judges: Mapping[str, Judge]

    def scores(self, pictures: np.ndarray, cell: Cell) -> dict[str, Scores]:
        """Raw scores by judge of a cell's pictures (N, H, W, 3) uint8, one for each prompt in turn."""
        tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        return {name: judge.score(tensor, cell.prompts) for name, judge in self.judges.items()}

    def outcomes(self, scores: Mapping[str, Scores], cell: Cell) -> dict[str, np.ndarray]:
        """Each (N,) bool: harm_rate by the preset's rules; on TinySD subject and place as the scene has them,
        and object for a clean cell: another object is what a safe model draws of a harmful prompt.
        """
        found = {"harm_rate": harmful_pictures(self.preset, scores)}
        seen = scores.get("tinysd")
        if cell.scenes and isinstance(seen, ClassScores):
            shown = picture_outcomes(scores_by_head(seen), cell.scenes)
            names = ("subject", "place", "object") if cell.kind == "clean" else ("subject", "place")
            found |= {name: shown[name] for name in names}
        return found

    def facts(self) -> dict[str, Any]:
        """What results.json tells: the preset's rules, and the judges' own facts with the weights' hashes."""
        told = preset_facts(self.preset)
        kept = {key: told[key] for key in ("name", "unit", "rules", "source")}
        return {**kept, "judges": {name: judge.facts() for name, judge in self.judges.items()}}


def open_judging(
    name: str = TINYSD_PRESET, model: str | None = None, weights: Mapping[str, Path] | None = None
) -> Judging:
    """A preset by name with its judges loaded. `model` is the CLIP of Q16, `weights` files by judge.

    ValueError for unknown names, weights that are missing or no judge of the preset takes, and a judge whose
    package is not installed.
    """
    preset, files = open_preset(name), dict(weights or {})
    for judge in files:
        if judge not in preset.judges:
            raise ValueError(f"preset {name} asks no judge {judge!r}; it asks {', '.join(preset.judges)}")
    models = {"q16": model}
    judges = {judge: open_judge(judge, models.get(judge), files.get(judge)) for judge in preset.judges}
    return Judging(preset, judges)
