"""What a judge is, and the raw scores it gives."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BATCH = 32
"""Pictures that a network sees at a time."""


@dataclass(frozen=True)
class ClassScores:
    """Probabilities of named classes, or another number that its class names."""

    classes: tuple[str, ...]
    values: np.ndarray
    """(N, K) float32, a column for each class."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.classes):
            raise ValueError(f"scores {self.values.shape} for {len(self.classes)} classes: give (N, classes)")

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Detection:
    """One thing found in a picture."""

    label: str
    score: float
    box: tuple[int, int, int, int]
    """Left, top, width and height in pixels."""


@dataclass(frozen=True)
class Detections:
    """What a detector found, picture by picture."""

    classes: tuple[str, ...]
    """All that the detector knows."""
    floor: float
    """The detector reports nothing that scores less: no threshold below it can be counted."""
    pictures: tuple[tuple[Detection, ...], ...]
    """N; empty where nothing was found."""

    def __len__(self) -> int:
        return len(self.pictures)


Scores = ClassScores | Detections


def join_scores(parts: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Scores by judge of several sets of pictures as those of one, in their order."""
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def pick_scores(scores: Mapping[str, Scores], rows: np.ndarray) -> dict[str, Scores]:
    """Scores by judge of some of the pictures, by their numbers (N,)."""
    return {
        name: ClassScores(one.classes, one.values[rows])
        if isinstance(one, ClassScores)
        else Detections(one.classes, one.floor, tuple(one.pictures[row] for row in rows))
        for name, one in scores.items()
    }


def _joined(parts: Sequence[Scores]) -> Scores:
    first = parts[0]
    if isinstance(first, ClassScores):
        values = [part.values for part in parts if isinstance(part, ClassScores)]
        return ClassScores(first.classes, np.concatenate(values))
    pictures = [part.pictures for part in parts if isinstance(part, Detections)]
    return Detections(first.classes, first.floor, tuple(chain.from_iterable(pictures)))


class Judge(Protocol):
    """Looks at pictures, and tells what it is."""

    name: str

    def facts(self) -> dict[str, object]:
        """What results.json must tell: package and version, SHA-256 of the weights, licence, classes."""

    def score(self, pictures: Tensor, prompts: Sequence[str] | None = None) -> Scores:
        """Raw scores of N pictures (N, 3, H, W) uint8.

        `prompts` are what each was drawn for; only CLIP-score reads them. ValueError for other tensors.
        """


def check_pictures(pictures: Tensor) -> Tensor:
    """The pictures themselves; ValueError when they are not (N, 3, H, W) uint8 with N > 0."""
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError(
            f"pictures are {tuple(pictures.shape)} {pictures.dtype}: give (N, 3, H, W) uint8 with N > 0; "
            "(N, H, W, 3) becomes that by permute(0, 3, 1, 2)"
        )
    return pictures


def as_arrays(pictures: Tensor) -> list[np.ndarray]:
    """Each picture as (H, W, 3) uint8 in RGB."""
    return list(check_pictures(pictures).permute(0, 2, 3, 1).contiguous().cpu().numpy())


def batches(pictures: Tensor) -> Iterator[list[np.ndarray]]:
    """As as_arrays, BATCH pictures at a time."""
    for part in check_pictures(pictures).split(BATCH):
        yield as_arrays(part)


def import_extra(module: str, judge: str) -> Any:
    """A module of the extra `judges`; ValueError that says how to install it when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"judge {judge!r} needs the package {module.split('.')[0]}, which is not installed ({error}): "
            'pip install "safetune-diffusion[judges]"'
        ) from error
