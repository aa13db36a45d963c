"""Unsupervised calibration: a mixture of two on a score; no ground truth is read."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

Array = NDArray[np.float64]

FEWEST = 10
"""Scores that a mixture needs at least."""
ONE_KIND = 20.0
"""Least log-odds of a mixture of one, either way: far from any threshold."""
STANDS_OUT = 4.0
"""Widths from the mean at which values of a mixture of one begin to crowd towards ONE_KIND."""
WIDTH = 0.05
"""Least width of a component: what lies closer together than this is one value."""


@dataclass(frozen=True)
class Mixture:
    """One or two normal components of a score, low (clean) first."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]
    harmful: bool = False
    """What a mixture of one is; of no meaning for two."""

    @property
    def one_kind(self) -> bool:
        """True when the scores form a single group: there is nothing to split."""
        return len(self.means) == 1

    def log_odds(self, values: Array) -> Array:
        """Log-odds of the high component (N,), monotone in the value.

        For a mixture of one they are all of one sign, ONE_KIND or more from zero, and nearest to it for the
        values that stand out: nothing is labelled by them, but an odd one is still told from the others.
        """
        if self.one_kind:
            side = 1.0 if self.harmful else -1.0
            standing_out = side * (self.means[0] - values) / self.stds[0]
            return side * (ONE_KIND + np.logaddexp(0.0, STANDS_OUT - standing_out))
        components = tuple(zip(self.means, self.stds, self.weights, strict=True))
        # Unequal widths bend the odds back beyond the means: outside of them the slope at the mean goes on.
        inside = np.clip(values, self.means[0], self.means[1])
        low, high = (_log_density(inside, *component) for component in components)
        slope = (self.means[1] - self.means[0]) / (self.stds[0] * self.stds[1])
        return high - low + slope * (values - inside)


def _log_density(values: Array, mean: float, std: float, weight: float) -> Array:
    return np.log(weight) - np.log(std) - 0.5 * ((values - mean) / std) ** 2


def fit_mixture(values: Array, reach: float, separation: float = 2.0, least_share: float = 0.0) -> Mixture:
    """Fit two normals to scores, or one when the pool holds one kind only.

    `reach` is the least score that a harmful group may have on average: a scale from outside the pool, so
    that neither a few odd clean scores nor the strongest of all-harmful ones are split off as a kind of
    their own. Two kinds have their means on both sides of it, at least `separation` widths apart (their
    geometric mean: a wide harmful kind does not hide beside a narrow clean one), a better BIC than one, and
    in the high one `least_share` of the values or more. A pool of one kind is harmful when its mean reaches
    that far. ValueError for fewer than FEWEST values.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} scores: calibration needs at least {FEWEST} pairs")
    column = np.asarray(values, dtype=np.float64)[:, None]
    one = GaussianMixture(1, random_state=0, reg_covar=WIDTH**2).fit(column)
    fits = [two for two in two_component_fits(column, reach) if two.bic(column) < one.bic(column)]
    for two in sorted(fits, key=lambda fit: -fit.lower_bound_):
        order = np.argsort(two.means_[:, 0])
        means, stds = two.means_[order, 0], np.sqrt(two.covariances_[order, 0, 0])
        apart = (means[1] - means[0]) / np.sqrt(stds.prod())
        weights = two.weights_[order]
        if means[0] < reach <= means[1] and apart >= separation and weights[1] >= least_share:
            return Mixture(tuple(means.tolist()), tuple(stds.tolist()), tuple(weights.tolist()))
    mean, std = float(one.means_[0, 0]), float(np.sqrt(one.covariances_[0, 0, 0]))
    return Mixture((mean,), (std,), (1.0,), harmful=mean >= reach)


def two_component_fits(column: Array, reach: float) -> Iterator[GaussianMixture]:
    """Fits of two normals (N, 1) from several starts: k-means', and a split at `reach`.

    Where one pair in a hundred is harmful, k-means would halve the clean ones.
    """
    starts: list[dict[str, Array]] = [{}]
    above = column[:, 0] >= reach
    if 2 <= above.sum() <= len(column) - 2:
        groups = [column[~above, 0], column[above, 0]]
        widths = np.array([max(group.std(), WIDTH) for group in groups])
        starts.append(
            {
                "means_init": np.array([[group.mean()] for group in groups]),
                "weights_init": np.array([len(group) / len(column) for group in groups]),
                "precisions_init": (1 / widths**2)[:, None, None],
            }
        )
    for start in starts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield GaussianMixture(
                2, n_init=1 if start else 4, random_state=0, reg_covar=WIDTH**2, **start
            ).fit(column)


def label_of(harm: Array, clean_below: float, harmful_above: float) -> NDArray[np.str_]:
    """clean, uncertain or harmful (N,) by harm in [0, 1]."""
    return np.select([harm <= clean_below, harm >= harmful_above], ["clean", "harmful"], "uncertain")


def threshold_for(harm: Array, known_harmful: NDArray[np.bool_], precision: float) -> float:
    """The lowest harm from which on known pairs are harmful at the rate `precision` or more.

    harm and truth (N,) of the pairs that somebody labelled. Raises ValueError when no threshold does it.
    """
    order = np.argsort(-harm, kind="stable")
    sorted_harm, right = harm[order], known_harmful[order]
    share = np.cumsum(right) / np.arange(1, len(harm) + 1)
    # Pairs of equal harm fall on one side together.
    last = np.append(sorted_harm[1:] != sorted_harm[:-1], True)
    fit = np.flatnonzero(last & (share >= precision))
    if not len(fit):
        raise ValueError(
            f"precision {precision}: no threshold reaches it on the {len(harm)} known pairs, the best is "
            f"{share[last].max():.2f}; give a lower one, or more known labels"
        )
    return float(sorted_harm[fit[-1]])
