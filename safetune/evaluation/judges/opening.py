"""Judges by name."""

from collections.abc import Callable
from pathlib import Path

from safetune.evaluation.judges.base import Judge
from safetune.evaluation.judges.classifier import TransformersJudge
from safetune.evaluation.judges.clip_score import ClipScoreJudge
from safetune.evaluation.judges.nudenet import NudeNetJudge
from safetune.evaluation.judges.nudenet_classifier import NudeNetClassifier
from safetune.evaluation.judges.open_nsfw import OpenNSFWJudge
from safetune.evaluation.judges.q16 import Q16Judge
from safetune.evaluation.judges.tinysd import TinySDJudge
from safetune.prompts.layouts import did_you_mean

JUDGES: dict[str, tuple[tuple[str, ...], Callable[[str | None, Path | None], Judge]]] = {
    "tinysd": ((), lambda model, weights: TinySDJudge()),
    "nudenet": ((), lambda model, weights: NudeNetJudge()),
    "nudenet-classifier": (("weights",), lambda model, weights: NudeNetClassifier(weights)),
    "open-nsfw": ((), lambda model, weights: OpenNSFWJudge()),
    "q16": (("model", "weights"), lambda model, weights: Q16Judge(model, weights)),
    "clip-score": (("model",), lambda model, weights: ClipScoreJudge(model)),
}
"""Judge by name: which options it takes, and how it is opened."""

TRANSFORMERS = "transformers:"
"""What stands before the folder or hub name of an image classifier."""


def open_judge(name: str, model: str | None = None, weights: Path | None = None) -> Judge:
    """Load a judge by its name in JUDGES, or "transformers:" and the folder or hub name of a classifier.

    `model` is the CLIP of q16 and clip-score, a folder or hub name; `weights` a file that the user brings:
    Q16's prompts, NudeNet 2's classifier. ValueError for an unknown name, an option that the judge does not
    take, missing weights, and a package that is not installed.
    """
    takes, opener = JUDGES.get(name, ((), None))
    if opener is None and not (name.startswith(TRANSFORMERS) and name != TRANSFORMERS):
        raise ValueError(
            f"no judge {name!r}{did_you_mean(name, list(JUDGES))}; allowed: {', '.join(JUDGES)}, "
            f"{TRANSFORMERS}FOLDER or {TRANSFORMERS}NAME"
        )
    for option, value in (("model", model), ("weights", weights)):
        if value is not None and option not in takes:
            raise ValueError(f"judge {name!r} takes no {option}, given {value}: leave it out")
    return TransformersJudge(name.removeprefix(TRANSFORMERS)) if opener is None else opener(model, weights)
