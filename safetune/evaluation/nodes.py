"""JSON whose values know their place in the file, so that an error can name it."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """A value of a JSON file that knows its place in it, for errors that name the place."""

    file: Path
    place: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        return self.place[-1]

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, Mapping) and self.value.get(key) is not None

    def __getitem__(self, key: str) -> "Node":
        if key not in self:
            raise self.error(f"an object with {key!r}")
        return Node(self.file, (*self.place, key), self.value[key])

    def __iter__(self) -> "Iterator[Node]":
        """The values that are not null: null stands for what was not measured."""
        return iter([self[key] for key in self.mapping() if key in self])

    def __bool__(self) -> bool:
        return self.value is not None

    def get(self, key: str, default: object = None) -> "Node":
        """The value under a key, `default` where it is missing or null."""
        return self[key] if key in self else Node(self.file, (*self.place, key), default)

    def mapping(self) -> Mapping[str, Any]:
        """The value as an object; ValueError when it is something else."""
        if not isinstance(self.value, Mapping):
            raise self.error("an object")
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """The value as a finite number from `low` to `high`; ValueError when it is not."""
        value = self.value
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not low <= value <= high:
            raise self.error("a number" if math.isinf(low) else f"a number from {low:g} to {high:g}")
        return float(value)

    def optional(self, key: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """The number under a key, None where it is missing or null."""
        return self[key].number(low, high) if key in self else None

    def count(self, key: str) -> int | None:
        """The whole number under a key, None where it is missing or null."""
        number = self.optional(key, 0)
        return None if number is None else int(number)

    def error(self, wanted: str) -> ValueError:
        """What is found here, and what results.json holds."""
        shown = json.dumps(self.value, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return ValueError(
            f"{self.file}: {'.'.join(self.place) or 'the file'} is {shown}, expected {wanted}. "
            "It may be of an older form: write it again by `safetune evaluate`"
        )
