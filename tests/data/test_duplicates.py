"""The index finds what comparing each with each finds; duplicates point at rows that are kept."""

import time

import numpy as np
import pytest

from safetune.data.duplicates import Duplicate, HammingIndex, find_duplicates
from safetune.data.hashing import Words


def words(*bits: int) -> Words:
    """A hash of 256 bits with these set."""
    flags = np.zeros(256, dtype=np.uint8)
    flags[list(bits)] = 1
    return np.packbits(flags).view(np.uint64)


def flip(value: Words, places: np.ndarray) -> Words:
    return value ^ words(*places.tolist())


def test_first_is_kept_and_duplicates_point_at_it() -> None:
    looks = [words(), words(1, 2), words(1, 2), words(200), words(*range(9)), words()]
    contents = ["a", "b", "b", "c", "d", "a"]
    assert find_duplicates(contents, looks, radius=2) == [
        Duplicate(1, 0, 2, exact=False),
        Duplicate(2, 0, 2, exact=False),
        Duplicate(3, 0, 1, exact=False),
        Duplicate(5, 0, 0, exact=True),
    ]


def test_no_chains() -> None:
    looks = [words(), words(1, 2), words(1, 2, 3, 4), words(1, 2, 3, 4, 5)]
    found = find_duplicates(list("abcd"), looks, radius=2)
    assert [(each.row, each.duplicate_of, each.distance) for each in found] == [(1, 0, 2), (3, 2, 1)]


def test_nearest_of_several() -> None:
    index = HammingIndex(256, 4)
    for value in (words(1, 2, 3), words(1), words(2)):
        index.add(value)
    assert index.nearest(words()) == (1, 1)
    assert index.nearest(words(1, 2)) == (0, 1)
    assert index.nearest(words(*range(100, 110))) is None


@pytest.mark.parametrize("radius", [0, 1, 7, 30])
def test_as_comparing_each_with_each(radius: int, rng: np.random.Generator) -> None:
    bases = [words(*rng.choice(256, 100, replace=False)) for _ in range(20)]
    looks = [
        flip(bases[rng.integers(20)], rng.choice(256, rng.integers(0, radius + 4), replace=False))
        for _ in range(300)
    ]
    kept, expected = [], []
    for row, value in enumerate(looks):
        distances = [int(np.bitwise_count(looks[other] ^ value).sum()) for other in kept]
        if distances and min(distances) <= radius:
            expected.append((row, kept[int(np.argmin(distances))], min(distances)))
        else:
            kept.append(row)
    found = find_duplicates([str(row) for row in range(300)], looks, radius)
    assert [(each.row, each.duplicate_of, each.distance) for each in found] == expected
    assert len(expected) > 20


def test_many_pictures_take_seconds(rng: np.random.Generator) -> None:
    count = 20_000
    looks = rng.integers(0, 2**63, (count, 4)).astype(np.uint64)
    looks[count // 2 :] = looks[: count // 2] ^ np.uint64(0b11)
    started = time.perf_counter()
    found = find_duplicates([str(row) for row in range(count)], list(looks), 10)
    # Each with each would be 2e8 comparisons, minutes in Python.
    assert time.perf_counter() - started < 20
    assert [(each.row, each.duplicate_of, each.distance) for each in found] == [
        (row, row - count // 2, 8) for row in range(count // 2, count)
    ]


def test_a_radius_beyond_the_hash() -> None:
    with pytest.raises(ValueError, match="a distance of 256 bits: give 0 to 255"):
        HammingIndex(256, 256)
    assert find_duplicates([], [], 10) == []
