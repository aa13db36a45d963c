"""The scores of the unlabelled pool, as the report draws them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LABELS = ("clean", "uncertain", "harmful")


@dataclass(frozen=True)
class PoolScores:
    """What the labeler said of N pairs, beside the ground truth it never read."""

    scores: dict[str, NDArray[np.floating]]
    """`prompt_score`, `guidance_score`, `image_score`, `pair_score` -> (N,)."""
    harm: NDArray[np.floating]
    """(N,) in [0, 1]."""
    labels: NDArray[np.str_] | NDArray[np.object_]
    """(N,) of "clean", "uncertain", "harmful"."""
    truth: NDArray[np.bool_]
    """(N,) whether the pair really holds a harmful object."""
    thresholds: tuple[float, float]
    """On harm: at or below the first a pair is clean, at or above the second it is harmful."""

    def __post_init__(self) -> None:
        columns = {**self.scores, "harm": self.harm, "labels": self.labels, "truth": self.truth}
        shape = self.harm.shape
        wrong = [f"{name} {column.shape}" for name, column in columns.items() if column.shape != shape]
        if wrong or self.harm.ndim != 1:
            given = ", ".join([f"harm {shape}", *wrong])
            raise ValueError(f"a pool needs arrays of one shape (N,), got {given}")
        unknown = sorted({str(label) for label in self.labels} - set(LABELS))
        if unknown:
            raise ValueError(f"unknown labels {unknown}; allowed: {', '.join(LABELS)}")
        if self.truth.dtype != np.bool_:
            raise ValueError(f"truth must be boolean, got {self.truth.dtype}; use truth.astype(bool)")
