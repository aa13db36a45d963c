"""Charts of several methods: harm against utility, and the harm of one category by method."""

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Bbox

from safetune.evaluation.finished import Measure, Spread
from safetune.evaluation.tables import format_measure
from safetune.evaluation.tradeoff import Tradeoff
from safetune.reporting.plots import STAND_INS, new_chart, to_svg
from safetune.reporting.rates import NOT_MEASURED

LONGEST = 26
"""Letters of a name in a chart."""


def tradeoff_chart(name: str, tradeoff: Tradeoff, spread: Spread) -> Markup:
    """Harm to the right, utility upwards: the better a method, the nearer to the upper left corner.

    Methods that another beats on both are hollow; a line joins those that none beats.
    """
    figure, axes = new_chart(3.3)
    beaten = tradeoff.beaten()
    scale = 100 if tradeoff.percent else 1
    front = sorted(
        (100 * point.harm.value, scale * point.utility.value)
        for point in tradeoff.points
        if point.label not in beaten
    )
    axes.step(*zip(*front, strict=True), where="post", color=STAND_INS["muted"], linewidth=0.9, zorder=1)
    for point in tradeoff.points:
        place = (100 * point.harm.value, scale * point.utility.value)
        colour = STAND_INS["base" if point.is_base else "lora"]
        axes.errorbar(
            *place,
            xerr=_reach(point.harm, spread, 100),
            yerr=_reach(point.utility, spread, scale),
            ecolor=STAND_INS["muted"],
            elinewidth=0.8,
            capsize=1.5,
            zorder=2,
        )
        face = STAND_INS["band"] if point.label in beaten else colour
        axes.plot(
            *place, "o", markersize=6, color=colour, markerfacecolor=face, markeredgewidth=1.4, zorder=3
        )
    axes.margins(0.09, 0.12)
    if not tradeoff.higher_is_better:
        axes.invert_yaxis()
    axes.grid(color=STAND_INS["line"], linewidth=0.6)
    axes.set_xlabel(f"{tradeoff.harm}, % (lower is better)")
    unit, better = ("%", "higher") if tradeoff.percent else ("axis turned", "lower")
    axes.set_ylabel(f"{tradeoff.utility}, {unit} ({better} is better)")
    axes.set_title("↖ better", loc="left", size=8.5, color=STAND_INS["muted"])
    _name_points(
        axes,
        [
            (shorten(point.label), 100 * point.harm.value, scale * point.utility.value)
            for point in tradeoff.points
        ],
    )
    read = "; ".join(
        f"{point.label}: harm {format_measure(point.harm, spread)}%, "
        f"{format_measure(point.utility, spread, tradeoff.percent)}{'%' if tradeoff.percent else ''}"
        for point in tradeoff.points
    )
    return to_svg(figure, name, f"{tradeoff.utility} against {tradeoff.harm}. {read}.")


def category_chart(
    name: str,
    category: str,
    labels: Sequence[str],
    measures: Sequence[Measure | None],
    marks: Sequence[bool],
    spread: Spread,
) -> Markup:
    """One horizontal bar a method, the marked ones strong, with its error and its number at the end."""
    figure, axes = new_chart(0.3 + 0.24 * len(labels))
    highs = [100 * measure.bounds(spread)[1] for measure in measures if measure is not None]
    longest = max([1.0, *highs])
    for place, (measure, marked) in enumerate(zip(measures, marks, strict=True)):
        if measure is None:
            axes.text(0, place, f" {NOT_MEASURED}", va="center", color=STAND_INS["muted"], size=8.5)
            continue
        axes.barh(place, 100 * measure.value, 0.62, color=STAND_INS["lora" if marked else "base"])
        reach = _reach(measure, spread, 100)
        axes.errorbar(
            100 * measure.value, place, xerr=reach, ecolor=STAND_INS["ink"], elinewidth=0.9, capsize=2
        )
        end = 100 * measure.bounds(spread)[1] + 0.015 * longest
        axes.text(end, place, f"{100 * measure.value:.1f}%", va="center", color=STAND_INS["ink"], size=8.5)
    axes.set_yticks(range(len(labels)), [shorten(label) for label in labels])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * longest)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    read = "; ".join(
        f"{label} {NOT_MEASURED if measure is None else format_measure(measure, spread) + '%'}"
        for label, measure in zip(labels, measures, strict=True)
    )
    return to_svg(figure, name, f"Harm rate, {category}. {read}.")


def shorten(label: str) -> str:
    """A name that leaves room for its chart, which reads the whole name aloud."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _reach(measure: Measure, spread: Spread, scale: float) -> list[list[float]] | None:
    """What errorbar takes: how far the error reaches down and up; None where it is not known."""
    if not measure.has(spread):
        return None
    low, high = measure.bounds(spread)
    return [[max(0.0, scale * (measure.value - low))], [max(0.0, scale * (high - measure.value))]]


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each name (label, x, y) where it covers no other name or point, as near to its own as it can."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    frame = axes.get_window_extent()
    dots: list[tuple[float, float]] = [tuple(axes.transData.transform((x, y))) for _, x, y in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
    for whiskers in axes.collections:
        if isinstance(whiskers, LineCollection):
            ends = [axes.transData.transform(segment) for segment in whiskers.get_segments()]
            taken += [Bbox([end.min(0) - 1, end.max(0) + 1]) for end in ends]
    for (label, x, y), dot in zip(points, dots, strict=True):
        text = axes.annotate(
            label,
            (x, y),
            (0, 0),
            textcoords="offset points",
            size=8,
            color=STAND_INS["ink"],
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": STAND_INS["muted"], "linewidth": 0.5, "shrinkB": 3},
        )
        text.set_in_layout(False)
        size = text.get_window_extent()
        box = min(_places(dot, size.width, size.height), key=lambda place: _price(place, dot, taken, frame))
        # In points, since an SVG has other pixels.
        to_points = 72 / axes.figure.dpi
        text.set_position(((box.x0 - dot[0]) * to_points, (box.y0 - dot[1]) * to_points))
        far = math.dist(dot, (min(max(dot[0], box.x0), box.x1), min(max(dot[1], box.y0), box.y1))) > 18
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(far)
        taken.append(box)


def _places(dot: tuple[float, float], width: float, height: float) -> list[Bbox]:
    """Where a name of this size may stand around a point, in pixels."""
    x, y = dot
    return [
        Bbox.from_bounds(left, y + up * distance - height / 2, width, height)
        for distance in (9, 16, 24, 34)
        for up in (0, 1, -1)
        for left in (x + distance, x - distance - width, x - width / 2)
        if up or left != x - width / 2
    ]


def _price(box: Bbox, dot: tuple[float, float], taken: Sequence[Bbox], frame: Bbox) -> float:
    """What is covered and what sticks out of the frame, in square pixels, and a little for distance."""
    outside = box.width * box.height - _shared(box, frame)
    far = math.dist(dot, box.get_points().mean(0)) - box.width / 2
    return sum(_shared(box, other) for other in taken) + 2 * outside + far


def _shared(one: Bbox, other: Bbox) -> float:
    """Area of the overlap of two boxes, in square pixels."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)
