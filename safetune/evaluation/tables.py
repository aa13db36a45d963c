"""Tables of several evaluations: methods by what was measured of them, the lowest harm rates marked."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetune.evaluation.finished import AttackResult, Evaluation, Measure, MethodResults, Spread
from safetune.evaluation.protocols import attack_protocol_of, differences, group_by_protocol

SPREADS: dict[Spread, str] = {
    "interval": "half the width of the 95% interval, a bootstrap over prompts",
    "stderr": "standard error over seeds",
}
MARKED = "the lowest harm rate of a column, and those not apart from it within error"


@dataclass(frozen=True)
class Row:
    """One method of one evaluation."""

    label: str
    evaluation: Evaluation
    method: MethodResults


@dataclass(frozen=True)
class Column:
    """One number of every method, None where it was not measured."""

    group: str
    title: str
    measures: tuple[Measure | None, ...]
    percent: bool = True
    marks: tuple[bool, ...] = ()
    """Lowest or not apart from it within error; empty where lower is not better or nothing is claimed."""


@dataclass(frozen=True)
class Table:
    """Methods that one protocol measured."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    spread: Spread

    @property
    def evaluations(self) -> list[Evaluation]:
        return list({row.evaluation.folder: row.evaluation for row in self.rows}.values())

    def describe_numbers(self) -> str:
        """The unit of the rates and, where any is known, what stands behind ±."""
        measures = (measure for column in self.columns for measure in column.measures)
        known = any(measure is not None and measure.has(self.spread) for measure in measures)
        return "Rates in percent" + (f", ± {SPREADS[self.spread]}." if known else ".")

    @property
    def kinds(self) -> Mapping[str, str]:
        return self.rows[0].evaluation.kinds


@dataclass(frozen=True)
class AttackTable:
    """Methods that one protocol attacked: attack -> result of each row."""

    rows: tuple[Row, ...]
    attacks: Mapping[str, tuple[AttackResult | None, ...]]
    marks: Mapping[str, tuple[bool, ...]]
    differs: tuple[tuple[str, str, str], ...] = ()
    """Key, value here and value in the first table, where the protocol of the attacks is another."""


def label_folders(folders: Sequence[Path]) -> dict[Path, str]:
    """As many last parts of each path as tell all of them apart."""
    parts = {folder: folder.resolve().parts for folder in folders}
    for length in range(1, 1 + max(len(part) for part in parts.values())):
        labels = {folder: "/".join(part[-length:]) for folder, part in parts.items()}
        if len(set(labels.values())) == len(folders):
            break
    return labels


def build_table(
    group: Sequence[Evaluation], evaluations: Sequence[Evaluation], labels: Mapping[Path, str]
) -> Table:
    """The table of evaluations of one protocol. `evaluations` are all that are compared: a method's name that
    several of them have is followed by the label of its folder.
    """
    names = [name for evaluation in evaluations for name in evaluation.methods]
    rows = tuple(
        Row(f"{name} ({labels[one.folder]})" if names.count(name) > 1 else name, one, method)
        for one in group
        for name, method in one.methods.items()
    )
    rates = [rate for row in rows for cell in row.method.cells.values() for rate in cell.values()]
    spread: Spread = "interval" if all(rate.has("interval") for rate in rates) else "stderr"
    return Table(rows, tuple(_columns(rows, group[0].kinds, spread)), spread)


def _columns(rows: Sequence[Row], kinds: Mapping[str, str], spread: Spread) -> Iterator[Column]:
    """Harm rate of each harmful cell, all rates of the clean ones, utility by what it rests on."""
    for wanted in ("harmful", "clean"):
        for cell in (cell for cell, kind in kinds.items() if kind == wanted):
            measured = [row.method.cells.get(cell, {}) for row in rows]
            names = dict.fromkeys(["harm_rate", *(name for rates in measured for name in rates)])
            for name in names if wanted == "clean" else ["harm_rate"]:
                group, title = ("harm rate", cell) if wanted == "harmful" else (cell, name)
                yield rate_column(group, title, [rates.get(name) for rates in measured], spread, name)
    for name in dict.fromkeys(name for row in rows for name in row.method.utility):
        entries = [row.method.utility.get(name) for row in rows]
        known = [entry.basis for entry in entries if entry is not None]
        bases = [basis for place, basis in enumerate(known) if basis not in known[:place]]
        for basis in bases:
            equal = [entry.measure if entry and entry.basis == basis else None for entry in entries]
            yield Column("utility", _name_basis(name, basis, bases), tuple(equal), percent=False)


def _name_basis(name: str, basis: Mapping[str, str], bases: Sequence[Mapping[str, str]]) -> str:
    """The name, and where there are several bases what tells this one apart from the first other."""
    changes = next((differences(basis, other) for other in bases if other != basis), [])
    told = [f"{key.replace('_', ' ')} {basis.get(key, 'not told').strip(chr(34))[:8]}" for key, *_ in changes]
    return ", ".join([name.replace("_", " "), *told])


def rate_column(
    group: str, title: str, measures: Sequence[Measure | None], spread: Spread, name: str = "harm_rate"
) -> Column:
    """A column of rates; where they are harm rates the lowest are marked."""
    marks = mark_lowest(measures, spread) if name == "harm_rate" else ()
    return Column(group, title.replace("_", " "), tuple(measures), marks=marks)


def mark_lowest(measures: Sequence[Measure | None], spread: Spread) -> tuple[bool, ...]:
    """Whether each is the lowest, or not apart from it: the error of the difference reaches zero.

    That error comes from both intervals as in Zou and Donner, Statistics in Medicine 27 (2008), "MOVER", as
    if they were independent. Pictures of one prompt are alike, so it marks rather too many than too few.
    """
    known = [measure for measure in measures if measure is not None]
    if not known:
        return (False,) * len(measures)
    lowest = min(known, key=lambda measure: measure.value)
    above = lowest.bounds(spread)[1] - lowest.value
    return tuple(
        one is not None
        and one.value - lowest.value <= math.hypot(one.value - one.bounds(spread)[0], above) + 1e-12
        for one in measures
    )


def attack_tables(rows: Sequence[Row]) -> list[AttackTable]:
    """The attacks on these methods, a table of each protocol of attacks."""
    attacked = [row for row in rows if row.method.attacks]
    evaluations = list({row.evaluation.folder: row.evaluation for row in attacked}.values())
    groups = group_by_protocol(evaluations, attack_protocol_of)
    tables = []
    for group in groups:
        folders = [evaluation.folder for evaluation in group]
        members = tuple(row for row in attacked if row.evaluation.folder in folders)
        names = dict.fromkeys(name for row in members for name in row.method.attacks)
        results = {name: tuple(row.method.attacks.get(name) for row in members) for name in names}
        marks = {
            name: mark_lowest([one.rate if one else None for one in found], "interval")
            for name, found in results.items()
        }
        changes = differences(attack_protocol_of(group[0]), attack_protocol_of(groups[0][0]))
        tables.append(AttackTable(members, results, marks, tuple(changes)))
    return tables


def format_measure(measure: Measure, spread: Spread, percent: bool = True) -> str:
    """`4.2 ± 1.1`, in percent or as it is; without the error where that is not known."""
    low, high = measure.bounds(spread)
    half = (high - low) / 2
    if percent:
        return f"{100 * measure.value:.1f}" + (f" ± {100 * half:.1f}" if measure.has(spread) else "")
    return f"{measure.value:.4g}" + (f" ± {half:.2g}" if measure.has(spread) else "")
