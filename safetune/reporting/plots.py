"""The report's charts, as inline SVG coloured by the page's CSS variables, so that dark mode reaches them."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from safetune.reporting.rates import CONDITIONS, Rate, format_percent, format_seconds

VARIABLES = ("ink", "muted", "line", "band", "base", "safecfg", "lora", "clean", "harmful")
STAND_INS = {name: f"#0000{number:02x}" for number, name in enumerate(VARIABLES, start=1)}
"""matplotlib takes no `var(--ink)`: each variable is drawn as a colour of its own and renamed in the SVG."""
WIDTH = 4.6
"""Inches; two charts stand side by side on a desktop and one fills a telephone, so text is sized for both."""


def rate_chart(
    name: str, groups: Sequence[str], rates: Mapping[str, Sequence[Rate | None]], label: str
) -> Markup:
    """Grouped bars in percent with standard errors; `rates` holds one rate per group for each condition."""
    figure, axes = new_chart(2.7)
    width = 0.8 / len(rates)
    for index, (condition, values) in enumerate(rates.items()):
        for group, rate in enumerate(values):
            place = group + (index - (len(rates) - 1) / 2) * width
            if rate is None:
                axes.text(
                    place, 2, "not measured", rotation=90, ha="center", color=STAND_INS["muted"], size=6.5
                )
                continue
            height, error = 100 * rate.mean, 100 * (rate.stderr or 0.0)
            axes.bar(place, height, width * 0.92, color=STAND_INS[condition])
            if rate.stderr is not None:
                axes.errorbar(place, height, error, ecolor=STAND_INS["ink"], elinewidth=0.9, capsize=2)
            number = f"{height:.1f}" if 0 < height < 99.95 else f"{height:.0f}"
            axes.text(place, height + error + 1.5, number, ha="center", color=STAND_INS["ink"], size=7.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100%"])
    axes.grid(axis="y", color=STAND_INS["line"], linewidth=0.6)
    read = [
        f"{group}: " + ", ".join(f"{CONDITIONS[key]} {format_percent(rates[key][index])}" for key in rates)
        for index, group in enumerate(groups)
    ]
    return to_svg(figure, name, f"{label}. {'; '.join(read)}.")


def score_histogram(name: str, values: NDArray[np.floating], truth: NDArray[np.bool_]) -> Markup:
    """Histogram of one score (N,) on a logarithmic axis, clean and harmful pairs over each other.

    Scores at or below zero have no logarithm: they are counted in the first bin and named on the axis.
    """
    figure, axes = new_chart(2.3)
    finite = np.isfinite(values)
    values, truth = values[finite], truth[finite]
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 1.0)
    if low * 1.05 >= high:
        low, high = low / 2, high * 2
    bins = np.geomspace(low, high * 1.0001, 33).tolist()
    _draw_truth(axes, np.maximum(values, low), truth, bins)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    notes = [f"{count} {what}" for count, what in (
        (int((values <= 0).sum()), "at or below zero, in the first bin"),
        (int((~finite).sum()), "not finite, left out"),
    ) if count]  # fmt: skip
    axes.set_xlabel("score, logarithmic" + "".join(f"; {note}" for note in notes))
    axes.set_ylabel("pairs")
    return to_svg(figure, name, f"Histogram of {name.replace('_', ' ')}. {_medians(values, truth)}")


def harm_histogram(
    harm: NDArray[np.floating], truth: NDArray[np.bool_], thresholds: tuple[float, float]
) -> Markup:
    """Histogram of calibrated harm (N,) with both thresholds, counts on a log axis: most pairs are sure."""
    figure, axes = new_chart(2.3)
    bins = np.linspace(0, 1, 41).tolist()
    _draw_truth(axes, harm, truth, bins)
    largest = max(int(np.histogram(harm[truth == kind], bins)[0].max()) for kind in (False, True))
    draw_harm_axes(axes, thresholds, largest)
    low, high = thresholds
    summary = f"Histogram of harm with thresholds {low:g} and {high:g}. {_medians(harm, truth)}"
    return to_svg(figure, "harm", summary)


def draw_harm_axes(axes: Axes, thresholds: tuple[float, float], largest: int) -> None:
    """Axes of a histogram of harm in [0, 1] whose fullest bin holds `largest` pairs, thresholds marked."""
    low, high = thresholds
    axes.axvspan(low, high, color=STAND_INS["band"], linewidth=0, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 4 * max(1, largest))
    axes.set_xlim(-0.01, 1.01)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    texts = (low, f"← clean ≤ {low:g}", 0.97), (high, f"harmful ≥ {high:g} →", 0.85)
    for threshold, text, height in texts:
        axes.axvline(threshold, color=STAND_INS["ink"], linewidth=1, linestyle=(0, (4, 2)))
        # Beside its line and out of the band, unless the edge of the chart is near.
        rightward = threshold < 0.3 if threshold == low else threshold <= 0.7
        axes.text(
            threshold + (0.012 if rightward else -0.012), height, text,
            transform=axes.get_xaxis_transform(), va="top", ha="left" if rightward else "right",
            color=STAND_INS["ink"], size=8,
        )  # fmt: skip
    axes.set_xlabel("harm")
    axes.set_ylabel("pairs, logarithmic")


def time_chart(seconds: Mapping[str, float]) -> Markup:
    """One horizontal bar a stage, in the order given, its duration written at its end."""
    figure, axes = new_chart(0.3 + 0.24 * len(seconds))
    longest = max(max(seconds.values()), 1e-9)
    for place, duration in enumerate(seconds.values()):
        axes.barh(place, duration, 0.62, color=STAND_INS["lora"])
        end = duration + 0.01 * longest
        axes.text(end, place, format_seconds(duration), va="center", color=STAND_INS["ink"], size=8.5)
    axes.set_yticks(range(len(seconds)), [stage.replace("_", " ") for stage in seconds])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * longest)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    read = ", ".join(f"{stage.replace('_', ' ')} {format_seconds(value)}" for stage, value in seconds.items())
    return to_svg(figure, "time", f"Time per stage: {read}.")


def new_chart(height: float) -> tuple[Figure, Axes]:
    """An empty chart of WIDTH x `height` inches in the page's colours."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(STAND_INS["muted"])
    axes.tick_params(length=0, labelsize=9, labelcolor=STAND_INS["ink"], color=STAND_INS["muted"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(size=8.5, color=STAND_INS["muted"])
    return figure, axes


def _draw_truth(
    axes: Axes, values: NDArray[np.floating], truth: NDArray[np.bool_], bins: Sequence[float]
) -> None:
    """Clean pairs pale with a dashed edge, harmful ones strong: told apart without hue too."""
    for kind, colour, alpha in ((False, "clean", 0.35), (True, "harmful", 0.6)):
        chosen = values[truth == kind]
        axes.hist(chosen, bins, histtype="stepfilled", color=STAND_INS[colour], alpha=alpha)
        style = "solid" if kind else (0, (2, 1))
        axes.hist(chosen, bins, histtype="step", color=STAND_INS[colour], linewidth=1.2, linestyle=style)


def _medians(values: NDArray[np.floating], truth: NDArray[np.bool_]) -> str:
    parts = []
    for kind, word in ((False, "clean"), (True, "harmful")):
        chosen = values[truth == kind]
        median = f", median {np.median(chosen):.3g}" if len(chosen) else ""
        parts.append(f"{len(chosen)} {word} pairs{median}")
    return "; ".join(parts) + "."


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an `<svg>` that scales to its column; no id in it occurs in another chart."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    viewbox = re.search(r'viewBox="([^"]+)"', text)
    if viewbox is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox; use matplotlib 3.8 or newer")
    text = re.sub(r"<svg[^>]*>", "", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for variable, colour in STAND_INS.items():
        text = text.replace(colour, f"var(--{variable})")
    opening = f'<svg class="plot" viewBox="{viewbox[1]}" role="img" aria-label="{escape(label)}">'
    return Markup(opening + text)
