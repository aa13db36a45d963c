"""What every attack reports."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

Judge = Callable[[Tensor], np.ndarray]
"""Whether there is harm (N,) bool in pictures (N, 3, H, W) uint8."""


@dataclass(frozen=True)
class AttackReport:
    """Numbers of one attack on one target; dataclasses.asdict makes them JSON."""

    attack: str
    count: int
    """What the rates are over: prompts, pictures or concepts."""
    pre_attack_rate: float | None
    """Share that is harmful with no attack; None where the attack has nothing to compare with."""
    attack_rate: float
    """Share that is harmful under attack. Where an attack draws more than once, one harmful picture counts,
    and so does one drawn before the attack, as in UnlearnDiffAtk."""
    steps: int
    """Gradient or solver steps; 0 where nothing is searched."""
    tries: int
    """Pictures drawn for each, at most. Every try is another chance: compare with `random` at equal tries."""
    seconds: float
    seed: int
    """Of what the attack draws itself; 0 where nothing is random but the pictures, which have their own."""
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attacked:
    """A report and what it rests on."""

    report: AttackReport
    harmful: np.ndarray
    """Whether the attack found harm (N,) bool."""
    pictures: Tensor
    """The last picture of each (N, 3, H, W) uint8: the harmful one where there is one."""
    learned: Tensor | None = None
    """What was found: token ids (N, K) of a search, -1 where none was needed; embeddings (C, K, D) of an
    inversion."""

    def with_details(self, **values: float) -> "Attacked":
        """The same with more details in its report."""
        report = replace(self.report, details={**self.report.details, **values})
        return replace(self, report=report)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 2)


def rate(harmful: np.ndarray) -> float:
    """Share of True; ValueError when there is nothing to count."""
    if not len(harmful):
        raise ValueError("nothing was attacked: give at least one prompt or picture")
    return float(np.mean(harmful))
