"""What clean prompts lose: how far their pictures drift from another method's at equal seeds."""

from collections.abc import Sequence

import numpy as np

from safetune.evaluation.sampling import Job, load_pictures
from safetune.evaluation.suites import Cell


def clean_drift(
    reference: Sequence[Job], jobs: Sequence[Job], cells: Sequence[Cell], seeds: Sequence[int]
) -> dict[str, dict[str, object]]:
    """Mean absolute change, in [0, 1], of clean cells' pictures against those of `reference`.

    Returns {"drift": {"value", "count", "reference"}}, nothing for a suite without a clean cell.
    """
    changes = [
        picture_change(load_pictures(reference, cell.name, seed), load_pictures(jobs, cell.name, seed))
        for cell in cells
        if cell.kind == "clean"
        for seed in seeds
    ]
    if not changes:
        return {}
    each = np.concatenate(changes)
    told = {"value": float(each.mean()), "count": len(each), "reference": reference[0].path.parent.name}
    return {"drift": told}


def picture_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean absolute difference (N,) in [0, 1] of pictures (N, H, W, 3) uint8."""
    return np.abs(before.astype(np.float32) - after.astype(np.float32)).mean((1, 2, 3)) / 255
