"""Utility by hand: distances of known Gaussians and points, drift, CLIP-score."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from safetune.evaluation.judges import ClassScores, Features, open_features, open_judge
from safetune.evaluation.sampling import Job
from safetune.evaluation.suites import tinysd_suite
from safetune.evaluation.utility import (
    frechet_distance,
    kernel_distance,
    measure_clip_score,
    measure_drift,
    measure_frechet,
    measure_kernel,
    pictures_sha256,
    scene_distances,
)
from safetune.tinysd.world import render

CROSS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
"""Mean 0 and covariance 2/3 of the unit matrix."""


def test_frechet_of_known_gaussians() -> None:
    """Means apart by (3, 4): 25. Covariances 2/3 (1, 1) and 2/3 (4, 9): 2/3 ((2 - 1)² + (3 - 1)²) = 10/3."""
    other = CROSS * [2.0, 3.0] + [3.0, 4.0]
    assert frechet_distance(CROSS, other) == pytest.approx(25 + 10 / 3)
    assert frechet_distance(other, CROSS) == pytest.approx(25 + 10 / 3)
    assert frechet_distance(CROSS, CROSS + np.array([3.0, 4.0])) == pytest.approx(25)


def test_frechet_of_one_set_is_zero(rng: np.random.Generator) -> None:
    features = rng.normal(size=(50, 6))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_is_the_formula_with_a_matrix_root(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(80, 5)), rng.normal(1, 2, size=(60, 5)) @ rng.normal(size=(5, 5))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_of_few_vectors() -> None:
    """Two vectors in three dimensions: covariances of rank one along one axis, variances 2 and 8."""
    a, b = np.array([[1.0, 0, 0], [-1, 0, 0]]), np.array([[2.0, 0, 0], [-2, 0, 0]])
    assert frechet_distance(a, b) == pytest.approx(2)  # (√8 - √2)²


def test_kernel_by_hand() -> None:
    """Points 0, 1 and 2, 3 by (xy + 1)³: within 1 and 343, across (1 + 1 + 27 + 64) / 4."""
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    value, spread = kernel_distance(a, b, subsets=3)
    assert value == pytest.approx(1 + 343 - 2 * 93 / 4) and spread == pytest.approx(0)


def test_kernel_divides_by_the_width() -> None:
    """In two dimensions (xy / 2 + 1)³: within 1 + 1, across 2 * (1 + 1 + 1 + 27/8) / 4 of (1,0), (0,1)."""
    a, b = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    assert kernel_distance(a, b, subsets=1)[0] == pytest.approx(2 - 2 * (1 + 27 / 8 + 1 + 1) / 4)


def test_kernel_averages_subsets() -> None:
    """Subsets of two of three: means of few draws differ by seed, and of many near the exact average."""
    a, b = np.array([[0.0], [1.0], [1.0]]), np.array([[0.0], [0.0], [0.0]])
    first, again = kernel_distance(a, b, 2, 5, seed=1), kernel_distance(a, b, 2, 5, seed=1)
    assert first == again != kernel_distance(a, b, 2, 5, seed=3)
    # Pairs (0, 1), (0, 1) and (1, 1) have kernels 1, 1 and 8; all kernels with 0 are 1.
    value, spread = kernel_distance(a, b, 2, 4000)
    assert value == pytest.approx((0 + 0 + 7) / 3, abs=0.2)
    assert spread == pytest.approx(7 * np.sqrt(2) / 3, abs=0.1)


def test_kernel_is_unbiased(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    assert abs(kernel_distance(a, b, 50, 200)[0]) < 0.05 < kernel_distance(a, b + 1, 50, 20)[0]


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_that_do_not_fit(distance: type) -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\): give \(N, D\) and \(M, D\)"):
        distance(CROSS, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="two vectors or more"):
        distance(CROSS, CROSS[:1])


def test_subsets_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"100 subsets of 5 vectors from 4 and 4.*of 2 to 4 vectors"):
        kernel_distance(CROSS, CROSS, 5)


def coloured(*values: int) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in values])


def mean_colour() -> Features:
    return Features({"name": "mean"}, lambda pictures: pictures.double().mean((2, 3)).numpy()[:, :1] / 10)


def test_measures_tell_count_and_reference() -> None:
    """Mean colours 0 and 1 against 2 and 3, as in test_kernel_by_hand; variances are equal, means 2 apart."""
    pictures, reference = coloured(0, 10), coloured(20, 30)
    told = {
        "count": 2,
        "reference_count": 2,
        "reference_sha256": pictures_sha256(reference),
        "features": {"name": "mean"},
    }
    assert measure_frechet(pictures, reference, mean_colour()) == {"value": pytest.approx(4), **told}
    assert measure_kernel(pictures, reference, mean_colour(), subsets=3) == {
        "value": pytest.approx(297.5),
        "std_over_subsets": pytest.approx(0),
        "subset_size": 2,
        "subsets": 3,
        "seed": 0,
        **told,
    }


def test_frechet_on_tinysd_sees_noise(noise_of_tinysd: Tensor) -> None:
    features = open_features("tinysd")
    half = noise_of_tinysd[:8]
    assert measure_frechet(half, half, features)["value"] == pytest.approx(0, abs=1e-6)
    assert float(str(measure_frechet(half, 255 - half, features)["value"])) > 0.1


@pytest.fixture
def noise_of_tinysd() -> Tensor:
    return torch.randint(0, 200, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def test_true_scenes_are_at_no_distance(tmp_path: Path) -> None:
    suite = tinysd_suite(4, ("seen", "clean"))
    clean, jobs = suite.cell("clean"), []
    for seed in (0, 1):
        job = Job(tmp_path / f"clean-{seed}-000.json", "clean", seed, tmp_path)
        scenes = [replace(scene, seed=scene.seed + seed) for scene in clean.scenes]
        np.save(job.pictures, np.stack([np.asarray(render(scene)) for scene in scenes]))
        jobs.append(job)
    found = scene_distances(jobs, suite.cells, (0, 1), open_features("tinysd"))
    assert found["frechet"]["value"] == pytest.approx(0, abs=1e-3) and found["kernel"]["value"] < 0.1
    assert found["frechet"]["count"] == found["kernel"]["reference_count"] == 8
    assert scene_distances(jobs, suite.cells[:1], (0, 1), open_features("tinysd")) == {}


def test_drift_by_hand() -> None:
    """Changes of 0, 51 and 255 of 255: 0, 0.2 and 1."""
    told = measure_drift(coloured(7, 51, 0), coloured(7, 102, 255))
    assert told["value"] == pytest.approx(0.4) and told["count"] == 3
    assert told["reference_sha256"] == pictures_sha256(coloured(7, 102, 255))
    with pytest.raises(ValueError, match="drift compares picture by picture"):
        measure_drift(coloured(1), coloured(1, 2))


def test_hash_is_of_shape_and_pixels() -> None:
    pictures = coloured(1, 2)
    expected = hashlib.sha256(b"(2, 3, 4, 4)" + bytes([1] * 48 + [2] * 48)).hexdigest()
    assert pictures_sha256(pictures) == pictures_sha256(pictures.clone()) == expected
    assert (
        len({expected, pictures_sha256(coloured(2, 1)), pictures_sha256(pictures.reshape(2, 3, 2, 8))}) == 3
    )


class Scored:
    """Stands for CLIP, with scores 30, -10 and 10."""

    name = "clip-score"

    def facts(self) -> dict[str, object]:
        return {"name": self.name}

    def score(self, pictures: Tensor, prompts: Sequence[str] | None = None) -> ClassScores:
        return ClassScores(("clip_score",), np.array([[30.0], [-10.0], [10.0]], np.float32))


def test_clip_score_mean_counts_negative_as_zero() -> None:
    told = measure_clip_score(coloured(1, 2, 3), ["a", "b", "c"], Scored())
    assert told == {
        "value": pytest.approx(40 / 3),
        "count": 3,
        "reference_sha256": hashlib.sha256(b"a\nb\nc").hexdigest(),
        "judge": {"name": "clip-score"},
    }


def test_clip_score_needs_its_judge(noise_of_tinysd: Tensor) -> None:
    with pytest.raises(ValueError, match=r"judge 'tinysd' gives no CLIP-score: give open_judge"):
        measure_clip_score(noise_of_tinysd, ["a"] * 8, open_judge("tinysd"))
