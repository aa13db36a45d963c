"""Unsupervised calibration: a mixture of two on a score; no ground truth is read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

Array = NDArray[np.float64]

FEWEST = 10
"""Scores that a mixture needs at least."""


@dataclass(frozen=True)
class Mixture:
    """One or two normal components of a score, low (clean) first."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def one_kind(self) -> bool:
        """True when the scores form a single group: there is nothing to split."""
        return len(self.means) == 1

    def log_odds(self, values: Array) -> Array:
        """Log-odds of the high component (N,), monotone in the value; -inf for a mixture of one."""
        if self.one_kind:
            return np.full(len(values), -np.inf)
        components = tuple(zip(self.means, self.stds, self.weights, strict=True))
        # Unequal widths bend the odds back beyond the means: outside of them the slope at the mean goes on.
        inside = np.clip(values, self.means[0], self.means[1])
        low, high = (_log_density(inside, *component) for component in components)
        slope = (self.means[1] - self.means[0]) / (self.stds[0] * self.stds[1])
        return high - low + slope * (values - inside)


def _log_density(values: Array, mean: float, std: float, weight: float) -> Array:
    return np.log(weight) - np.log(std) - 0.5 * ((values - mean) / std) ** 2


def fit_mixture(values: Array, separation: float = 2.0) -> Mixture:
    """Fit one and two normals; two only when BIC prefers them and their means lie apart.

    `separation` is the least distance of the means in joint widths. ValueError for fewer than FEWEST values.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} scores: calibration needs at least {FEWEST} pairs")
    column = np.asarray(values, dtype=np.float64)[:, None]
    one, two = (GaussianMixture(k, n_init=4, random_state=0, reg_covar=1e-4).fit(column) for k in (1, 2))
    order = np.argsort(two.means_[:, 0])
    means, stds = two.means_[order, 0], np.sqrt(two.covariances_[order, 0, 0])
    apart = (means[1] - means[0]) / np.sqrt((stds**2).mean())
    if two.bic(column) >= one.bic(column) or apart < separation:
        return Mixture((float(one.means_[0, 0]),), (float(np.sqrt(one.covariances_[0, 0, 0])),), (1.0,))
    return Mixture(tuple(map(float, means)), tuple(map(float, stds)), tuple(map(float, two.weights_[order])))


def label_of(harm: Array, clean_below: float, harmful_above: float) -> NDArray[np.str_]:
    """clean, uncertain or harmful (N,) by harm in [0, 1]."""
    return np.select([harm <= clean_below, harm >= harmful_above], ["clean", "harmful"], "uncertain")
