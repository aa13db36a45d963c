"""Numbers out of results.json, and how they read: percent, points, minutes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

CONDITIONS = {"base": "Base, CFG", "safecfg": "SafeCFG", "lora": "LoRA, plain CFG"}
CELLS = {"seen": "seen", "heldout_names": "held-out names", "heldout_pairs": "held-out pairs"}
CLEAN_ACCURACIES = ("subject", "place", "object")
MEASURES = {
    "harm_rate": "harmful object found",
    "subject": "subject right",
    "place": "place right",
    "object": "object right",
}
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Rate:
    """A fraction over seeds."""

    mean: float
    """In [0, 1]."""
    stderr: float | None
    """Standard error of the mean over seeds; None where one seed was run."""
    per_seed: tuple[float, ...] = ()
    """The mean of each seed, in the protocol's order."""


def look_up(tree: object, *keys: str) -> object:
    """The value under nested keys, None where one of them is missing."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def read_number(tree: object, *keys: str) -> float | None:
    """The finite number under nested keys, None where there is none."""
    value = look_up(tree, *keys)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def read_rate(results: Mapping[str, object], *keys: str) -> Rate | None:
    """The rate under nested keys, e.g. `("base", "clean", "subject")`; None where it was not measured."""
    mean = read_number(results, *keys, "mean")
    if mean is None:
        return None
    per_seed = look_up(results, *keys, "per_seed")
    seeds = tuple(float(value) for value in per_seed) if isinstance(per_seed, Sequence) else ()
    return Rate(mean, read_number(results, *keys, "stderr"), seeds)


def average(rates: Sequence[Rate | None]) -> Rate | None:
    """The plain mean of rates measured on the same seeds; None where one of them is missing.

    The standard error comes from the seeds' own averages where they are known (the rates of one seed are not
    independent), else from adding the errors in quadrature.
    """
    measured = [rate for rate in rates if rate is not None]
    if not measured or len(measured) < len(rates):
        return None
    mean = sum(rate.mean for rate in measured) / len(measured)
    lengths = {len(rate.per_seed) for rate in measured}
    if len(lengths) == 1 and lengths.pop() > 1:
        columns = zip(*(rate.per_seed for rate in measured), strict=True)
        seeds = tuple(sum(column) / len(measured) for column in columns)
        center = sum(seeds) / len(seeds)
        variance = sum((value - center) ** 2 for value in seeds) / (len(seeds) - 1)
        return Rate(mean, math.sqrt(variance / len(seeds)), seeds)
    errors = [rate.stderr for rate in measured if rate.stderr is not None]
    if len(errors) < len(measured):
        return Rate(mean, None)
    return Rate(mean, math.sqrt(sum(error**2 for error in errors)) / len(measured))


def heldout_harm(results: Mapping[str, object], condition: str) -> Rate | None:
    """Harm rate on held-out prompts: the mean of held-out names and held-out pairs."""
    cells = ("heldout_names", "heldout_pairs")
    return average([read_rate(results, condition, "harmful", cell, "harm_rate") for cell in cells])


def format_percent(rate: Rate | None) -> str:
    """`97.1 ± 0.4%` (the error may wrap whole to the next line), without the error where it is unknown."""
    if rate is None:
        return NOT_MEASURED
    error = "" if rate.stderr is None else f" ±\N{NO-BREAK SPACE}{100 * rate.stderr:.1f}"
    return f"{100 * rate.mean:.1f}{error}%"


def format_points(before: Rate | None, after: Rate | None) -> str:
    """The change from `before` to `after` in percentage points, always signed: `−1.6`."""
    if before is None or after is None:
        return NOT_MEASURED
    change = round(100 * (after.mean - before.mean), 1)
    return f"{change:+.1f}".replace("-", "−") if change else "0.0"


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `1 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
