"""Harm left against utility kept: what a method pays, and which methods another beats on both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safetune.evaluation.finished import Measure
from safetune.evaluation.tables import Row, Table


@dataclass(frozen=True)
class Point:
    """A method in the plane."""

    label: str
    is_base: bool
    harm: Measure
    utility: Measure


@dataclass(frozen=True)
class Tradeoff:
    """The plane and its points."""

    harm: str
    """What the harm of a point is, in words."""
    utility: str
    higher_is_better: bool
    """False for a distance, such as drift."""
    percent: bool
    points: tuple[Point, ...]
    missing: tuple[str, ...]
    """Labels of methods that lack one of both numbers."""

    def beaten(self) -> dict[str, list[str]]:
        """Label -> labels of the methods that are at least as good on both, and better on one.

        By the numbers alone, not their errors; methods that none beats are left out.
        """
        sign = 1 if self.higher_is_better else -1
        found: dict[str, list[str]] = {}
        for point in self.points:
            own = (-point.harm.value, sign * point.utility.value)
            for other in self.points:
                its = (-other.harm.value, sign * other.utility.value)
                if its[0] >= own[0] and its[1] >= own[1] and its != own:
                    found.setdefault(point.label, []).append(other.label)
        return found


def find_tradeoff(table: Table) -> Tradeoff | None:
    """Mean harm rate of held-out cells against clean object accuracy, else drift, else Fréchet distance.

    None where no method has both numbers.
    """
    cells = heldout_cells(table.kinds)
    harm = [_mean_harm(row, cells) for row in table.rows]
    for utility, name, higher, measures in _utilities(table):
        both = [one is not None and other is not None for one, other in zip(harm, measures, strict=True)]
        if any(both):
            points = tuple(
                Point(row.label, row.method.facts.get("kind") == "base", one, other)
                for row, one, other in zip(table.rows, harm, measures, strict=True)
                if one is not None and other is not None
            )
            missing = tuple(row.label for row, known in zip(table.rows, both, strict=True) if not known)
            return Tradeoff(_describe_harm(cells), utility, higher, name == "object", points, missing)
    return None


def _utilities(table: Table) -> list[tuple[str, str, bool, list[Measure | None]]]:
    """In words, name, whether higher is better, and the number of each row; the one to take first."""
    clean = [cell for cell, kind in table.kinds.items() if kind == "clean"]
    objects = [
        mean_of([row.method.cells.get(cell, {}).get("object") for cell in clean]) for row in table.rows
    ]
    found = [("object right on clean prompts", "object", True, objects)]
    for name, words in (("drift", "drift on clean prompts"), ("frechet", "Fréchet distance, clean prompts")):
        columns = [one for one in table.columns if one.group == "utility" and one.title.split(",")[0] == name]
        if len(columns) == 1:
            found.append((words, name, False, list(columns[0].measures)))
    return found


def heldout_cells(kinds: Mapping[str, str]) -> list[str]:
    """Harmful cells whose name says that training saw nothing of them; all harmful ones where none does."""
    harmful = [cell for cell, kind in kinds.items() if kind == "harmful"]
    return [cell for cell in harmful if cell.startswith("heldout")] or harmful


def _describe_harm(cells: Sequence[str]) -> str:
    names = [cell.replace("_", " ") for cell in cells]
    return ("mean harm rate: " if len(names) > 1 else "harm rate: ") + ", ".join(names)


def _mean_harm(row: Row, cells: Sequence[str]) -> Measure | None:
    return mean_of([row.method.cells.get(cell, {}).get("harm_rate") for cell in cells])


def mean_of(measures: Sequence[Measure | None]) -> Measure | None:
    """The plain mean of rates on different prompts with the same seeds; None where one of them is missing.

    Intervals are over prompts, so they are independent and add in quadrature. Standard errors are over seeds,
    which the rates share: they come from the seeds' own means, and are unknown where those are.
    """
    known = [measure for measure in measures if measure is not None]
    if not known or len(known) < len(measures):
        return None
    count = len(known)
    value = sum(measure.value for measure in known) / count
    low = high = stderr = None
    if all(measure.has("interval") for measure in known):
        bounds = [(measure.value, *measure.bounds("interval")) for measure in known]
        low = value - math.hypot(*(middle - lower for middle, lower, _ in bounds)) / count
        high = value + math.hypot(*(upper - middle for middle, _, upper in bounds)) / count
    lengths = {len(measure.per_seed) for measure in known}
    seeds: tuple[float, ...] = ()
    if len(lengths) == 1 and lengths != {0}:
        columns = zip(*(measure.per_seed for measure in known), strict=True)
        seeds = tuple(sum(column) / count for column in columns)
    if len(seeds) > 1:
        middle = sum(seeds) / len(seeds)
        stderr = math.sqrt(sum((seed - middle) ** 2 for seed in seeds) / (len(seeds) - 1) / len(seeds))
    return Measure(value, low, high, stderr, seeds)
