"""Rows of tensors on disk: shards that processes write in turn, read row by row and never held whole."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from safetune.files import check_settings, write_json

SETTINGS_FILE = "settings.json"

Numbers = Tensor | np.ndarray | Sequence[int]
"""Row numbers, in whatever form they come."""


class Place(NamedTuple):
    """Where a row lies: a tensor of a safetensors file, or one row of that tensor."""

    path: Path
    name: str
    row: int | None = None


class Rows:
    """N tensors in safetensors files, read through the files' mapping into memory.

    Only what is asked for is read. What is asked for often stays in the system's file cache, so that a set
    that fits in memory is read as fast as a tensor in memory.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self.places = list(places)
        self._files: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(self.places + other.places)

    def select(self, rows: Iterable[int]) -> "Rows":
        """Some of the rows in another order; a row may come twice."""
        return Rows(self.places[row] for row in rows)

    def row(self, row: int) -> Tensor:
        """One tensor, a view of the file."""
        path, name, inner = self.places[row]
        tensor: Tensor = self._file(path).get_tensor(name)
        return tensor if inner is None else tensor[inner]

    def read(self, rows: Numbers) -> Tensor:
        """Tensors of B rows, stacked, on the CPU; they must have one shape."""
        return torch.stack([self.row(row) for row in torch.as_tensor(rows).tolist()])

    def shape(self, row: int) -> tuple[int, ...]:
        """Shape of one tensor, nothing read but the file's header."""
        path, name, inner = self.places[row]
        shape = tuple(self._file(path).get_slice(name).get_shape())
        return shape if inner is None else shape[1:]

    def _file(self, path: Path) -> Any:
        # An open file keeps its mapping, no descriptor.
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        return self._files[path]


def stacked_rows(paths: Iterable[Path], name: str = "latents") -> Rows:
    """Rows of files that hold many in one tensor (n, ...) of that name."""
    places = []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            count = file.get_slice(name).get_shape()[0]
        places += [Place(path, name, row) for row in range(count)]
    return Rows(places)


@dataclass(frozen=True)
class Shards:
    """The files part-NNNNN.safetensors of a folder, `size` of `count` rows in each: tensors "ROW.NAME".

    Rows may differ in shape. A shard is written whole or not at all, and a finished one never again.
    """

    folder: Path
    count: int
    size: int = 64

    def path(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05d}.safetensors"

    def rows(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def claim(self, accelerator: Accelerator, facts: Mapping[str, object]) -> list[int]:
        """The missing shards that this process has to write; the processes share them between them.

        `facts` is JSON that says what the rows depend on. Raises ValueError when the folder was made with
        other facts. Every process calls it, and waits for the others when it has written its own.
        """
        settings = {**facts, "rows": self.count, "shard_rows": self.size}
        check_settings(self.folder / SETTINGS_FILE, settings, "--output_dir")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_json(self.folder / SETTINGS_FILE, settings)
        shards = range(-(-self.count // self.size))
        missing = [shard for shard in shards if not self.path(shard).is_file()]
        accelerator.wait_for_everyone()
        return missing[accelerator.process_index :: accelerator.num_processes]

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard's tensors, named "ROW.NAME"."""
        path = self.path(shard)
        temporary = path.with_suffix(".tmp")
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
        temporary.replace(path)

    def names(self) -> set[str]:
        """Names of the tensors that every row has."""
        with safe_open(self.path(0), framework="pt") as file:
            return {name.split(".", 1)[1] for name in file.keys()}  # noqa: SIM118 - no mapping

    def read(self, name: str) -> Rows:
        """The tensors of that name by row."""
        paths = [self.path(shard) for shard in range(-(-self.count // self.size))]
        return Rows(Place(paths[row // self.size], f"{row}.{name}") for row in range(self.count))
