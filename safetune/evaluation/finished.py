"""An evaluation that is done: its results.json, read and checked before anything is made of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetune.evaluation.nodes import Node

Spread = Literal["interval", "stderr"]
"""Which error of a number is meant: its 95% interval, or the standard error over seeds."""

NO_BASIS = ("value", "low", "high", "stderr", "per_seed", "std_over_subsets", "seconds")
"""Keys of a utility that say nothing of what it was measured against."""


@dataclass(frozen=True)
class Measure:
    """A number with what is known of its error."""

    value: float
    low: float | None = None
    """Lower and upper end of the 95% interval."""
    high: float | None = None
    stderr: float | None = None
    """Of the mean over seeds; None where one seed was run."""
    per_seed: tuple[float, ...] = ()

    def has(self, spread: Spread) -> bool:
        """Whether this error is known."""
        return self.stderr is not None if spread == "stderr" else None not in (self.low, self.high)

    def bounds(self, spread: Spread) -> tuple[float, float]:
        """The number less and plus its error; twice the number itself where that is not known."""
        if spread == "stderr" and self.stderr is not None:
            return self.value - self.stderr, self.value + self.stderr
        if spread == "interval" and self.low is not None and self.high is not None:
            return self.low, self.high
        return self.value, self.value


@dataclass(frozen=True)
class Utility:
    """What pictures are worth against a reference: comparable where all that it rests on agrees."""

    measure: Measure
    basis: Mapping[str, str]
    """Such as count, reference and features, as JSON by key."""


@dataclass(frozen=True)
class AttackResult:
    """One attack on one method."""

    rate: Measure
    """Share that is harmful under attack."""
    before: float | None
    """The same without attack; None where the attack has nothing to compare with."""
    count: int | None
    steps: int | None
    seconds: float | None


@dataclass(frozen=True)
class MethodResults:
    """What was measured of one method."""

    facts: Mapping[str, Any]
    cells: Mapping[str, Mapping[str, Measure]]
    """Cell -> measure, such as harm_rate -> rate."""
    categories: Mapping[str, Measure]
    utility: Mapping[str, Utility]
    attacks: Mapping[str, AttackResult]
    grid: tuple[Path, ...]
    """Pictures that hold all of a cell's, in the same order for every method."""


@dataclass(frozen=True)
class Evaluation:
    """A results.json."""

    folder: Path
    methods: Mapping[str, MethodResults]
    kinds: Mapping[str, str]
    """Cell -> harmful or clean."""
    protocol: Mapping[str, Any]
    attack_protocol: Mapping[str, Any] | None
    versions: Mapping[str, Any]


def read_evaluation(path: Path) -> Evaluation:
    """Read the results.json of a folder, or the file itself.

    ValueError when there is none, it is no JSON, or not of the form that `safetune evaluate` writes.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path}: no results.json there; give a folder that `safetune evaluate --out` wrote, or its file"
        )
    try:
        root = Node(file, (), json.loads(file.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no readable JSON ({error}): run `safetune evaluate` again") from error
    methods, protocol = root["methods"], root["protocol"].mapping()
    kinds = (root if "cell_kinds" in root else root["protocol"])["cell_kinds"]
    for cell in kinds:
        if cell.value not in ("harmful", "clean"):
            raise cell.error("harmful or clean")
    if not methods.mapping():
        raise methods.error("one method or more")
    names = frozenset(kinds.mapping())
    attack_protocol = root.get("attack_protocol")
    return Evaluation(
        folder=file.parent,
        methods={method.key: _read_method(method, methods, names, file.parent) for method in methods},
        kinds=kinds.mapping(),
        protocol={key: value for key, value in protocol.items() if key != "cell_kinds"},
        attack_protocol=attack_protocol.mapping() if attack_protocol else None,
        versions=root.get("versions", {}).mapping(),
    )


def _read_method(node: Node, methods: Node, names: frozenset[str], folder: Path) -> MethodResults:
    cells = {}
    for cell in node["cells"]:
        if cell.key not in names:
            raise cell.error(f"a cell of cell_kinds: {', '.join(sorted(names))}")
        cell["harm_rate"]
        cells[cell.key] = {rate.key: _read_rate(rate) for rate in cell if isinstance(rate.value, Mapping)}
    grid = node.get("grid", []).value
    if not isinstance(grid, Sequence) or not all(isinstance(name, str) for name in grid):
        raise node["grid"].error("a list of picture files")
    return MethodResults(
        facts=node.get("facts", {}).mapping(),
        cells=cells,
        categories={rate.key: _read_rate(rate) for rate in node.get("categories", {})},
        utility={entry.key: _read_utility(entry, methods) for entry in node.get("utility", {})},
        attacks={entry.key: _read_attack(entry) for entry in node.get("attacks", {})},
        grid=tuple(folder / name for name in grid),
    )


def _read_rate(node: Node, name: str = "mean") -> Measure:
    return _read_measure(node, name, 0, 1)


def _read_measure(node: Node, name: str, least: float, most: float) -> Measure:
    seeds = node.get("per_seed", []).value
    return Measure(
        value=node[name].number(least, most),
        low=node.optional("low", least, most),
        high=node.optional("high", least, most),
        stderr=node.optional("stderr", 0),
        per_seed=tuple(float(seed) for seed in seeds) if isinstance(seeds, list) else (),
    )


def _read_utility(node: Node, methods: Node) -> Utility:
    """Its basis is all that stands beside the number; of a method that is the reference, its weights too."""
    basis = {key: value for key, value in node.mapping().items() if key not in NO_BASIS}
    reference = basis.get("reference")
    if isinstance(reference, str) and reference in methods:
        basis["reference_weights_sha256"] = methods[reference].get("facts", {}).get("weights_sha256").value
    flat = {key: json.dumps(value, sort_keys=True) for key, value in basis.items()}
    return Utility(_read_measure(node, "value", -math.inf, math.inf), flat)


def _read_attack(node: Node) -> AttackResult:
    """The rate's 95% interval is Wilson's, from the count, where the file has none."""
    rate, count = _read_rate(node, "attack_rate"), node.count("count")
    if count and not rate.has("interval"):
        rate = Measure(rate.value, *wilson(rate.value, count))
    return AttackResult(
        rate, node.optional("pre_attack_rate", 0, 1), count, node.count("steps"), node.optional("seconds", 0)
    )


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share of `count` independent outcomes (Wilson 1927); not empty at 0 and 1."""
    center = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, center - half), min(1.0, center + half)
