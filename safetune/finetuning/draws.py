"""What is drawn of the pairs: which ones at a step, and of each its picture, timestep, noise and prompt.

All of it depends on the seed and on numbers alone, so that any process can draw any part of any step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from safetune.files import fingerprint_of

Sampling = Literal["uniform", "logit-normal"]


@dataclass(frozen=True)
class Draw:
    """B draws: the rows of a step, of one pass, or of a part of the targets that are cached."""

    rows: Tensor
    """Pairs (B,)."""
    numbers: Tensor
    """Number (B,) of the draw of that pair."""
    pictures: Tensor
    """Places (B,) among the latents: the pair's own picture, or the safe one of its prompt."""
    timesteps: Tensor
    """(B,) integers."""
    seeds: list[int]
    """Seeds of B rows of noise."""
    emptied: Tensor
    """(B,) bool: the prompt is taken away."""

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, chosen: slice) -> "Draw":
        """Some of the draws."""
        return Draw(
            self.rows[chosen],
            self.numbers[chosen],
            self.pictures[chosen],
            self.timesteps[chosen],
            self.seeds[chosen],
            self.emptied[chosen],
        )

    def part(self, index: int, count: int) -> "Draw":
        """One of `count` equal parts: what one process takes in one pass."""
        size = len(self) // count
        return self.select(slice(index * size, (index + 1) * size))


@dataclass(frozen=True)
class Draws:
    """How pairs are drawn. Arrays are over N pairs, or list some of them."""

    harmful: np.ndarray
    """Pairs that make one half of a step."""
    clean: np.ndarray
    """Pairs that make the other half."""
    safe: np.ndarray
    """Place (N,) of each prompt's safe picture among the latents, -1 for none."""
    harm: Tensor
    """Harm (N,): only pairs without any lose their prompt."""
    seed: int
    safe_pictures: float
    """Share of draws beside the safe picture, where there is one."""
    empty_prompts: float
    """Share of draws of harmless pairs whose prompt is emptied."""
    min_timestep: int
    max_timestep: int
    """The largest timestep, drawn too."""
    timestep_sampling: Sampling = "uniform"
    cached: int = 0
    """Draws that each pair has; 0: a new one every time."""
    bucket: np.ndarray | None = None
    """Number (N,) of each pair's picture size: a step is of one size. None: all pictures have one."""
    concept: np.ndarray | None = None
    """Number (N,) of each pair's concept: each is drawn as often as the others. None: each pair is."""

    def draw_step(self, step: int, count: int) -> Draw:
        """`count` draws of a step, harmful and clean in turn; a function of seed and step.

        With buckets, sizes are drawn by how many pairs they have, of those that have both kinds. Raises
        ValueError when `count` is odd, and when no size has both kinds.
        """
        if count % 2:
            raise ValueError(f"a step of {count} pairs: give an even number, half of them are clean")
        rng = np.random.default_rng([self.seed, step])
        size = rng.choice(len(self._halves), p=self._shares)
        harmful, clean = self._halves[size]
        drawn = rng.choice(harmful, count // 2, p=self._chances[size])
        rows = np.stack([drawn, rng.choice(clean, count // 2)], axis=1).flatten()
        numbers = rng.integers(0, self.cached, count) if self.cached else step * count + np.arange(count)
        return self.draw(rows, numbers)

    def draw(self, rows: np.ndarray, numbers: np.ndarray) -> Draw:
        """Draws of B pairs by their numbers; each a function of seed, pair and number."""
        safe, empty, place, noise = (uniform(self.seed, rows, numbers, stream) for stream in range(4))
        if self.timestep_sampling == "logit-normal":
            place = torch.special.ndtri(torch.from_numpy(place)).sigmoid().numpy()
        span = self.max_timestep + 1 - self.min_timestep
        timesteps = np.minimum(self.min_timestep + (span * place).astype(np.int64), self.max_timestep)
        beside_safe = (self.safe[rows] >= 0) & (safe < self.safe_pictures)
        return Draw(
            torch.from_numpy(rows),
            torch.from_numpy(numbers),
            torch.from_numpy(np.where(beside_safe, self.safe[rows], rows)),
            torch.from_numpy(timesteps),
            (noise * 2**31).astype(np.int64).tolist(),
            (self.harm[torch.from_numpy(rows)] == 0) & torch.from_numpy(empty < self.empty_prompts),
        )

    @property
    def used(self) -> np.ndarray:
        """All pairs that are ever drawn, size by size: not those of a size that lacks one of the kinds."""
        return np.concatenate([np.sort(np.concatenate(half)) for half in self._halves])

    def facts(self) -> dict[str, object]:
        """All that draws depend on, as JSON."""
        names = ("seed", "safe_pictures", "empty_prompts", "min_timestep", "max_timestep")
        options = {name: getattr(self, name) for name in (*names, "timestep_sampling", "cached")}
        return {**options, "drawn": fingerprint_of([self.used.tolist(), self.safe.tolist()])}

    @cached_property
    def _halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Harmful and clean pairs of each size that has both."""
        if self.bucket is None:
            return [(self.harmful, self.clean)]
        sizes = range(int(self.bucket.max()) + 1)
        halves = [
            tuple(rows[self.bucket[rows] == size] for rows in (self.harmful, self.clean)) for size in sizes
        ]
        both = [(harmful, clean) for harmful, clean in halves if len(harmful) and len(clean)]
        if not both:
            raise ValueError(
                "no picture size has both harmful and clean pairs: leave out --buckets, or add pairs"
            )
        return both

    @cached_property
    def _shares(self) -> np.ndarray:
        sizes = np.array([len(harmful) + len(clean) for harmful, clean in self._halves])
        return sizes / sizes.sum()

    @cached_property
    def _chances(self) -> list[np.ndarray | None]:
        """The chance of each harmful pair of each size to be drawn; None for all alike."""
        if self.concept is None:
            return [None] * len(self._halves)
        chances = [1 / np.bincount(self.concept[rows])[self.concept[rows]] for rows, _ in self._halves]
        return [chance / chance.sum() for chance in chances]


def uniform(*values: np.ndarray | int) -> np.ndarray:
    """Numbers (B,) in [0, 1), each a hash of its row of integers: SplitMix64, one value after the other.

    A generator for each row takes 20 microseconds: too long for a step of a thousand rows.
    """
    state = np.zeros(1, np.uint64)
    for value in values:
        state = (state ^ np.asarray(value, np.int64).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) * 2.0**-53
