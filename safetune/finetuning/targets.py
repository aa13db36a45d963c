"""Teacher targets computed once: a step then asks no teacher.

On disk a draw takes as much as a picture's latents: 64 KiB at 512 pixels (SD 1.5), 256 KiB at 1024 (SDXL) and
1 MiB at 1024 (SD 3.5) in fp32, half of that in bf16 and fp16; a pair takes that `cache_targets` times.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from safetune.data.shards import Numbers, Rows, Shards
from safetune.finetuning.draws import Draw, Draws

TARGETS = "targets"


class TargetCache:
    """Targets (K, C, h, w) of each pair on disk; `places` (N,) says which of the rows is a pair's."""

    def __init__(self, rows: Rows, places: np.ndarray) -> None:
        self.rows, self.places = rows, places

    def read(self, rows: Numbers, numbers: Numbers) -> Tensor:
        """Targets (B, C, h, w) of B draws, on the CPU, in the precision that they were computed in."""
        places = self.places[np.asarray(rows)]
        chosen = zip(places.tolist(), np.asarray(numbers).tolist(), strict=True)
        return torch.stack([self.rows.row(place)[number] for place, number in chosen])


def cached_targets(
    accelerator: Accelerator,
    folder: Path,
    facts: Mapping[str, object],
    draws: Draws,
    target: Callable[[Draw], Tensor],
    batch_size: int,
    shard_draws: int = 256,
) -> TargetCache:
    """Targets of all draws of all pairs that are ever drawn; `target` computes those that are missing.

    `target` gives (B, C, h, w). Every process calls this, before the denoiser is sharded: each computes its
    own shards, in batches of its own, and a killed run goes on with those that are missing. `facts` is JSON
    that says what the targets depend on besides the draws. Raises ValueError when the folder holds targets of
    other facts or draws.
    """
    pairs = draws.used
    shards = Shards(folder, len(pairs), max(1, shard_draws // draws.cached))
    mine = shards.claim(accelerator, {**facts, **draws.facts()})
    for shard in tqdm(mine, desc="targets", unit="shard", disable=not accelerator.is_main_process):
        places = shards.rows(shard)
        made = targets_of(pairs[places.start : places.stop], draws, target, batch_size)
        shards.write(shard, {f"{place}.{TARGETS}": made[pairs[place]] for place in places})
    accelerator.wait_for_everyone()
    places_of = np.full(len(draws.safe), -1)
    places_of[pairs] = np.arange(len(pairs))
    return TargetCache(shards.read(TARGETS), places_of)


def targets_of(
    pairs: np.ndarray, draws: Draws, target: Callable[[Draw], Tensor], batch_size: int
) -> dict[int, Tensor]:
    """Targets (K, C, h, w) of some pairs, by pair; a batch is of one picture size."""
    sizes = np.zeros(len(pairs)) if draws.bucket is None else draws.bucket[pairs]
    made: dict[int, Tensor] = {}
    for size in np.unique(sizes):
        alike = pairs[sizes == size]
        drawn = draws.draw(np.repeat(alike, draws.cached), np.tile(np.arange(draws.cached), len(alike)))
        batches = (drawn.select(slice(n, n + batch_size)) for n in range(0, len(drawn), batch_size))
        values = torch.cat([target(batch).cpu() for batch in batches])
        made |= zip(alike.tolist(), values.unflatten(0, (-1, draws.cached)), strict=True)
    return made
