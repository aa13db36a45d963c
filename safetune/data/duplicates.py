"""Near-duplicates among many hashes, without comparing each with each."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safetune.data.hashing import Words


@dataclass(frozen=True)
class Duplicate:
    """A row that is left out for an earlier one."""

    row: int
    duplicate_of: int
    """Row that is kept; never itself a duplicate."""
    distance: int
    """Bits in which their hashes differ; 0 for equal files."""
    exact: bool
    """True when the files are equal byte for byte."""


class HammingIndex:
    """Hashes that can be asked for the nearest within `radius` bits.

    Cut into radius + 1 bands, two hashes that differ in at most `radius` bits agree in one band at least, so
    only those that share a band are compared.
    """

    def __init__(self, bits: int, radius: int) -> None:
        if not 0 <= radius < bits:
            raise ValueError(f"a distance of {radius} bits: give 0 to {bits - 1} for hashes of {bits} bits")
        self.radius = radius
        self.edges = np.linspace(0, bits, radius + 2).round().astype(int)
        self.bands: list[defaultdict[bytes, list[int]]] = [defaultdict(list) for _ in range(radius + 1)]
        self.hashes = np.empty((64, bits // 64), dtype=np.uint64)
        self.count = 0

    def add(self, value: Words) -> None:
        """Add a hash; its number is that of the hashes before it."""
        if self.count == len(self.hashes):
            self.hashes = np.concatenate([self.hashes, np.empty_like(self.hashes)])
        self.hashes[self.count] = value
        for band, key in zip(self.bands, self._keys(value), strict=True):
            band[key].append(self.count)
        self.count += 1

    def nearest(self, value: Words) -> tuple[int, int] | None:
        """Number and distance of the nearest hash, the first of equals; None when none is near enough."""
        found: set[int] = set()
        for band, key in zip(self.bands, self._keys(value), strict=True):
            found.update(band.get(key, ()))
        if not found:
            return None
        numbers = np.array(sorted(found))
        distances = np.bitwise_count(self.hashes[numbers] ^ value).sum(axis=1)
        best = int(distances.argmin())
        return (int(numbers[best]), int(distances[best])) if distances[best] <= self.radius else None

    def _keys(self, value: Words) -> list[bytes]:
        bits: NDArray[np.uint8] = np.unpackbits(value.view(np.uint8))
        return [bits[start:end].tobytes() for start, end in zip(self.edges, self.edges[1:], strict=False)]


def find_duplicates(contents: Sequence[str], looks: Sequence[Words], radius: int) -> list[Duplicate]:
    """Rows to leave out, in order: the first of its kind is kept, and each points at a row that is kept.

    `contents` are hashes of the files, `looks` perceptual hashes, as picture_hashes gives them.
    """
    if not looks:
        return []
    index = HammingIndex(64 * len(looks[0]), radius)
    kept: list[int] = []
    seen: dict[str, tuple[int, int]] = {}  # by content: the row that is kept for it, and how far off it is
    duplicates = []
    for row, (content, value) in enumerate(zip(contents, looks, strict=True)):
        if content not in seen:
            near = index.nearest(value)
            if near is None:
                index.add(value)
                kept.append(row)
                seen[content] = (row, 0)
                continue
            seen[content] = (kept[near[0]], near[1])
        original, distance = seen[content]
        duplicates.append(Duplicate(row, original, distance, exact=contents[original] == content))
    return duplicates
