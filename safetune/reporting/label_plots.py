"""Charts of labels that no ground truth colours: scores under their fitted mixture, harm under its labels."""

from collections.abc import Callable, Mapping

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm

from safetune.labeling.calibration import Mixture
from safetune.reporting.plots import STAND_INS, draw_harm_axes, new_chart, to_svg

Array = NDArray[np.float64]
SCALES: Mapping[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "prompt": (lambda score: np.log(score + 1e-6), lambda value: np.exp(value) - 1e-6),
    "image": (lambda score: score, lambda value: value),
}
"""Score -> the value that its mixture is fitted to, and back."""
LABEL_COLOURS = {"clean": "clean", "uncertain": "base", "harmful": "harmful"}


def mixture_histogram(
    name: str,
    scores: NDArray[np.floating],
    fitted: NDArray[np.bool_],
    mixture: Mixture,
    thresholds: tuple[float, float],
) -> Markup:
    """Histogram of a score (N,), on the axis its mixture lives on, with the mixture's density over it.

    `fitted` (N,) marks the pairs that the mixture was fitted to; the others are drawn paler. The shaded band
    is where this score alone would leave a pair uncertain.
    """
    scale, back = SCALES[name]
    finite = np.isfinite(scores)
    values, fitted = scale(scores[finite].astype(np.float64)), fitted[finite]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = max(0.02 * (high - low), 1e-3)
    bins = np.linspace(low - margin, high + margin, 45)
    figure, axes = new_chart(2.3)
    axes.hist(values, bins.tolist(), color=STAND_INS["base"], alpha=0.3)
    axes.hist(values[fitted], bins.tolist(), color=STAND_INS["base"], alpha=0.75)
    axes.set_ylim(0, 1.2 * max(1.0, float(np.histogram(values, bins)[0].max())))
    axes.set_xlim(bins[0], bins[-1])
    _draw_mixture(axes, mixture, float(fitted.sum()), thresholds, bins)
    if name == "prompt":
        ticks = _round_ticks(bins)
        axes.set_xticks(scale(np.array(ticks)).tolist(), [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("score, logarithmic")
    else:
        axes.set_xlabel("score, in spreads of clean pictures")
    axes.set_ylabel("pairs")
    parts = zip(mixture.weights, back(np.array(mixture.means)), strict=True)
    read = " and ".join(f"{100 * weight:.0f}% around {score:.3g}" for weight, score in parts)
    kind = "one component" if mixture.one_kind else "two components"
    return to_svg(figure, f"{name}_score", f"Histogram of {name} score, {len(values)} pairs; {kind}: {read}.")


def label_histogram(
    harm: NDArray[np.floating], labels: NDArray[np.object_], thresholds: tuple[float, float]
) -> Markup:
    """Histogram of harm (N,) in the colours of its labels, with both thresholds."""
    figure, axes = new_chart(2.3)
    bins = np.linspace(0, 1, 41)
    axes.hist(
        [harm[labels == name] for name in LABEL_COLOURS],
        bins.tolist(),
        histtype="barstacked",
        color=[STAND_INS[colour] for colour in LABEL_COLOURS.values()],
    )
    draw_harm_axes(axes, thresholds, int(np.histogram(harm, bins)[0].max()))
    read = ", ".join(f"{(labels == name).sum()} {name}" for name in LABEL_COLOURS)
    return to_svg(
        figure, "harm", f"Histogram of harm, thresholds {thresholds[0]:g} and {thresholds[1]:g}: {read}."
    )


def expected_pairs(mixture: Mixture, pairs: float, places: Array, width: float) -> Array:
    """Pairs (K, N) that each component of a mixture fitted to `pairs` puts into a bin around each place."""
    means, stds, weights = (
        np.array(part)[:, None] for part in (mixture.means, mixture.stds, mixture.weights)
    )
    return pairs * width * weights * norm.pdf(places, means, stds)


def band_edges(mixture: Mixture, thresholds: tuple[float, float], low: float, high: float) -> Array:
    """Values (2,) in [low, high] at which the odds of a mixture of two reach both thresholds on harm."""
    grid = np.linspace(low, high, 2000)
    return np.interp(logit(np.array(thresholds)), mixture.log_odds(grid), grid)


def _draw_mixture(
    axes: Axes, mixture: Mixture, pairs: float, thresholds: tuple[float, float], bins: Array
) -> None:
    """Components as lines, clean dashed and harmful solid, and the band of the undecided between them."""
    grid = np.linspace(bins[0], bins[-1], 300)
    looks = [("ink", "solid")] if mixture.one_kind else [("clean", (0, (4, 1.5))), ("harmful", "solid")]
    lines = expected_pairs(mixture, pairs, grid, bins[1] - bins[0])
    for line, (colour, style) in zip(lines, looks, strict=True):
        axes.plot(grid, line, color=STAND_INS[colour], linewidth=1.8, linestyle=style)
    if mixture.one_kind:
        return
    edges = band_edges(mixture, thresholds, bins[0], bins[-1])
    axes.axvspan(*edges, color=STAND_INS["band"], linewidth=0, zorder=0)
    for edge in edges:
        axes.axvline(edge, color=STAND_INS["ink"], linewidth=1, linestyle=(0, (4, 2)))


def _round_ticks(bins: Array) -> list[float]:
    """Scores 0, 1, 2, 5, 10 and so on within the bins of their logarithms, far enough apart to be read."""
    rounds = [0.0, *(factor * 10.0**power for power in range(-7, 8) for factor in (1, 2, 5))]
    places = SCALES["prompt"][0](np.array(rounds))
    ticks, last = [], -np.inf
    for tick, place in zip(rounds, places, strict=True):
        if bins[0] <= place <= bins[-1] and place - last >= (bins[-1] - bins[0]) / 9:
            ticks.append(tick)
            last = place
    return ticks
