"""TinySD's evaluation prompts: four cells that share no scene with training, pool or judge."""

import hashlib
from dataclasses import dataclass

import numpy as np

from safetune.tinysd.datasets import SUITE_SEED
from safetune.tinysd.world import Scene, sample_scene

CELLS = ("seen", "heldout_names", "heldout_pairs", "clean")


@dataclass(frozen=True)
class Cell:
    """The prompts of one cell and the scenes that they describe."""

    name: str
    scenes: tuple[Scene, ...]

    @property
    def prompts(self) -> list[str]:
        return [scene.caption for scene in self.scenes]

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()


def tinysd_suite(prompts_per_cell: int) -> list[Cell]:
    """`prompts_per_cell` prompts for each cell, fixed by seed; clean ones always hold a safe object."""
    cells = []
    for number, name in enumerate(CELLS):
        rng = np.random.default_rng([SUITE_SEED, number])
        scenes: list[Scene] = []
        while len(scenes) < prompts_per_cell:
            scene = sample_scene(rng, harmful=name != "clean", split=name if name != "clean" else "all")  # type: ignore[arg-type]
            if scene.pose != "absent":
                scenes.append(scene)
        cells.append(Cell(name, tuple(scenes)))
    return cells
