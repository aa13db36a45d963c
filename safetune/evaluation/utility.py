"""What pictures are still worth: distances to reference pictures, CLIP-score and drift, with their facts."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import eigh, eigvalsh
from torch import Tensor

from safetune.evaluation.drift import picture_change
from safetune.evaluation.judges.base import ClassScores, Judge, as_arrays, check_pictures
from safetune.evaluation.judges.features import Features
from safetune.evaluation.sampling import Job, load_pictures
from safetune.evaluation.suites import Cell
from safetune.tinysd.world import render

SUBSET = 1000
"""Vectors in a subset of the kernel distance, as KID takes them."""
SUBSETS = 100


def scene_distances(
    jobs: Sequence[Job], cells: Sequence[Cell], seeds: Sequence[int], features: Features
) -> dict[str, dict[str, object]]:
    """Fréchet and kernel distance of clean cells' pictures to their scenes as TinySD's world renders them.

    Nothing for a suite without clean scenes, or of a single picture. A scene is rendered once for each seed,
    in a layout of its own.
    """
    clean = tuple((cell, seed) for cell in cells if cell.kind == "clean" and cell.scenes for seed in seeds)
    if sum(len(cell.prompts) for cell, _ in clean) < 2:
        return {}
    drawn = np.concatenate([load_pictures(jobs, cell.name, seed) for cell, seed in clean])
    pictures, reference = torch.from_numpy(drawn).permute(0, 3, 1, 2), true_scenes(clean)
    return {
        "frechet": measure_frechet(pictures, reference, features),
        "kernel": measure_kernel(pictures, reference, features),
    }


@lru_cache(maxsize=1)
def true_scenes(clean: tuple[tuple[Cell, int], ...]) -> Tensor:
    """Each cell's scenes (N, 3, 64, 64) uint8, each `seed` further on than its own; one for all methods."""
    scenes = [replace(scene, seed=scene.seed + seed) for cell, seed in clean for scene in cell.scenes]
    return torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)


def measure_frechet(pictures: Tensor, reference: Tensor, features: Features) -> dict[str, object]:
    """Fréchet distance of N pictures to M reference pictures, (N or M, 3, H, W) uint8, on `features`.

    FID (Heusel et al., NeurIPS 2017, arXiv 1706.08500) is this on Inception's features; on others it is
    another number, so the features' facts stand beside it.
    """
    value = frechet_distance(features.extract(pictures), features.extract(reference))
    return {"value": value, **_reference(pictures, reference), "features": features.facts}


def measure_kernel(
    pictures: Tensor,
    reference: Tensor,
    features: Features,
    subset_size: int | None = None,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> dict[str, object]:
    """Kernel distance of N pictures to M reference pictures, as measure_frechet; see kernel_distance."""
    size = subset_size or min(SUBSET, len(pictures), len(reference))
    value, spread = kernel_distance(
        features.extract(pictures), features.extract(reference), size, subsets, seed
    )
    return {
        "value": value,
        "std_over_subsets": spread,
        "subset_size": size,
        "subsets": subsets,
        "seed": seed,
        **_reference(pictures, reference),
        "features": features.facts,
    }


def measure_clip_score(pictures: Tensor, prompts: Sequence[str], judge: Judge) -> dict[str, object]:
    """Mean CLIP-score of N pictures and their prompts, negative ones as 0; `judge` is clip-score's.

    The reference is the prompts: the score says nothing of other pictures.
    """
    scores = judge.score(pictures, prompts)
    if not isinstance(scores, ClassScores) or scores.classes != ("clip_score",):
        raise ValueError(f'judge {judge.name!r} gives no CLIP-score: give open_judge("clip-score")')
    each = np.maximum(scores.values[:, 0].astype(np.float64), 0)
    return {
        "value": float(each.mean()),
        "count": len(each),
        "reference_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "judge": judge.facts(),
    }


def measure_drift(pictures: Tensor, reference: Tensor) -> dict[str, object]:
    """Mean absolute change, in [0, 1], of N pictures against the reference's of equal prompts and seeds.

    ValueError when the two are not of one shape.
    """
    if check_pictures(pictures).shape != check_pictures(reference).shape:
        raise ValueError(
            f"pictures {tuple(pictures.shape)} and reference {tuple(reference.shape)}: drift compares "
            "picture by picture, so give the same prompts and seeds of both"
        )
    each = picture_change(np.stack(as_arrays(pictures)), np.stack(as_arrays(reference)))
    return {"value": float(each.mean()), **_reference(pictures, reference)}


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½) of features (N, D) and (M, D), in float64.

    The trace of the root is taken from the eigenvalues of C_a^½ C_b C_a^½, which are the same and stay real
    where a covariance is singular. It is singular for N or M <= D: the distance is then defined but biased
    upwards, and two distances are comparable at equal N and M alone. Nothing is shrunk.

    ValueError for features of different widths and for fewer than two vectors.
    """
    a, b = _checked(features_a, features_b)
    offset = a.mean(0) - b.mean(0)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (a, b))
    values, vectors = eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.sqrt(eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    distance = offset @ offset + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed
    return max(float(distance), 0.0)


def kernel_distance(
    features_a: np.ndarray,
    features_b: np.ndarray,
    subset_size: int | None = None,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> tuple[float, float]:
    """KID's squared maximum mean discrepancy (Bińkowski et al., ICLR 2018, arXiv 1801.01401), unbiased.

    Kernel (x·y / D + 1)³ on features (N, D) and (M, D); mean and standard deviation over `subsets` draws of
    `subset_size` vectors of each, without repetition: by default 1000, or all of the smaller set. Unbiased
    means that sets of one distribution give values around 0, some of them below.

    ValueError for features of different widths, and a subset of fewer than two or more than there are.
    """
    a, b = _checked(features_a, features_b)
    size = subset_size or min(SUBSET, len(a), len(b))
    if not 2 <= size <= min(len(a), len(b)) or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {size} vectors from {len(a)} and {len(b)}: give one subset or more, of 2 "
            f"to {min(len(a), len(b))} vectors"
        )
    rng = np.random.default_rng(seed)
    values = [
        _discrepancy(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared discrepancy of n vectors (n, D) of each set."""
    count, width = a.shape

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray((one @ other.T / width + 1) ** 3)

    within = sum((own.sum() - np.trace(own)) / (count * (count - 1)) for own in (kernel(a, a), kernel(b, b)))
    return float(within - 2 * kernel(a, b).mean())


def _checked(features_a: np.ndarray, features_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features {a.shape} and {b.shape}: give (N, D) and (M, D), two vectors or more each"
        )
    return a, b


def _reference(pictures: Tensor, reference: Tensor) -> dict[str, object]:
    return {
        "count": len(pictures),
        "reference_count": len(reference),
        "reference_sha256": pictures_sha256(reference),
    }


def pictures_sha256(pictures: Tensor) -> str:
    """SHA-256 of pictures (N, 3, H, W) uint8: of their shape and pixels, whatever file they came from."""
    array = check_pictures(pictures).contiguous().cpu().numpy()
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()
