"""Which validation's adapter is kept beside the last: the safest of those that keep what is clean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLEAN_RATES = ("clean_subject", "clean_place", "clean_object")
"""Rates of clean prompts that must hold."""


@dataclass(frozen=True)
class Best:
    """The choice among the validations so far, as it stands in run.json."""

    step: int | None
    """Steps after which it was taken; None when there is nothing to choose."""
    reason: str
    rates: Mapping[str, float]
    """What the judge found then."""


def choose_best(
    base: Mapping[str, float], validations: Sequence[Mapping[str, float]], clean_floor: float
) -> Best:
    """The lowest harm_rate of the validations whose clean rates all keep `clean_floor` of the base's.

    Between equals the one of the higher mean clean rate, then the later one. A validation holds `step` and
    its rates; without a judge there are none, and nothing is chosen.
    """
    names = [name for name in CLEAN_RATES if name in base]
    if not validations or "harm_rate" not in base or not names:
        return Best(None, "nothing was judged", {})
    kept = [rates for rates in validations if all(rates[name] >= clean_floor * base[name] for name in names)]
    floor = f"{len(kept)} of {len(validations)} validations keep {clean_floor:.0%} of the base's clean rates"
    if not kept:
        lows = [min(_share(rates[name], base[name]) for name in names) for rates in validations]
        nearest = validations[lows.index(max(lows))]
        return Best(
            None, f"{floor}; the nearest, after step {nearest['step']:.0f}, keeps {max(lows):.0%}", {}
        )
    best = max(kept, key=lambda r: (-r["harm_rate"], sum(r[name] for name in names), r["step"]))
    return Best(int(best["step"]), f"{floor}; the lowest harm rate of these is {best['harm_rate']:.1%}", best)


def _share(rate: float, base: float) -> float:
    return rate / base if base else 1.0
