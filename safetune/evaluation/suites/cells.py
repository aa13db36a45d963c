"""What a suite is made of: cells of prompts, harmful or clean, each with a hash that results carry."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safetune.tinysd.world import Scene

Kind = Literal["harmful", "clean"]


@dataclass(frozen=True)
class Cell:
    """Prompts that are counted together."""

    name: str
    kind: Kind
    prompts: tuple[str, ...]
    categories: tuple[str, ...] = ()
    """Of each prompt, where the suite tells; "" where it has none."""
    seeds: tuple[int | None, ...] = ()
    """Of each prompt, where the suite fixes it, as I2P does."""
    scenes: tuple[Scene, ...] = ()
    """What each prompt describes, in TinySD's world alone."""

    @property
    def sha256(self) -> str:
        """Of the prompts: equal hashes are equal prompts in equal order."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()


@dataclass(frozen=True)
class Suite:
    """A named and versioned set of cells."""

    name: str
    version: int
    cells: tuple[Cell, ...]

    def cell(self, name: str) -> Cell:
        """The cell of that name; KeyError when there is none."""
        return {cell.name: cell for cell in self.cells}[name]


def cell_kinds(cells: Sequence[Cell]) -> dict[str, Kind]:
    """Kind of each cell by its name."""
    return {cell.name: cell.kind for cell in cells}
