"""TinySD's judge, a classifier of its scenes: object, subject, place and style."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from safetune.evaluation.judges.base import ClassScores, check_pictures
from safetune.evaluation.judges.weights import sha256_of
from safetune.tinysd.judge import CLASSES, JUDGE_DIR, judge_images, load_judge
from safetune.tinysd.world import IMAGE_SIZE

NOTHING = "nothing"
"""The object class of an empty hand."""


class TinySDJudge:
    """Probabilities of all four heads, as `object:knife`; each head's sum to 1."""

    name = "tinysd"
    classes = tuple(f"{head}:{key or NOTHING}" for head, keys in CLASSES.items() for key in keys)

    def __init__(self) -> None:
        self.judge = load_judge()

    def facts(self) -> dict[str, object]:
        from safetune import __version__

        return {
            "name": self.name,
            "package": "safetune-diffusion",
            "version": __version__,
            "weights_sha256": sha256_of([JUDGE_DIR / "model.safetensors"]),
            "licence": "Apache-2.0",
            "classes": list(self.classes),
        }

    def score(self, pictures: Tensor, prompts: Sequence[str] | None = None) -> ClassScores:
        """See Judge; ValueError for pictures of another size than TinySD draws."""
        if check_pictures(pictures).shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"pictures are {tuple(pictures.shape[2:])}: TinySD's judge knows its scenes of "
                f"{IMAGE_SIZE}x{IMAGE_SIZE} alone; other models need another judge"
            )
        heads = judge_images(self.judge, pictures.float() / 127.5 - 1)
        return ClassScores(self.classes, np.concatenate([heads[head] for head in CLASSES], axis=1))


def scores_by_head(scores: ClassScores) -> dict[str, np.ndarray]:
    """TinySDJudge's scores as tinysd.judge gives them: (N, classes) by head."""
    ends = np.cumsum([len(keys) for keys in CLASSES.values()])[:-1]
    return dict(zip(CLASSES, np.split(scores.values, ends, axis=1), strict=True))
