"""What a denoiser is conditioned on, as one value that can be joined, indexed and repeated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings (B, L, D), pooled embeddings (B, P) or None, attention mask (B, L) or None."""

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply a function of the batch to every tensor that is there."""
        return Conditioning(*(None if x is None else function(x) for x in self._parts()))  # type: ignore[arg-type]

    def select(self, index: Tensor | slice) -> "Conditioning":
        """Rows by index tensor, boolean mask (B,) or slice."""
        return self.map(lambda x: x[index])

    def repeat(self, times: int) -> "Conditioning":
        """The batch `times` over: a b a b."""
        return self.map(lambda x: x.repeat(times, *[1] * (x.dim() - 1)))

    def expand(self, batch: int) -> "Conditioning":
        """One row as a batch of equal rows, without copying."""
        return self.map(lambda x: x.expand(batch, *x.shape[1:]))

    def to(self, target: torch.device | torch.dtype) -> "Conditioning":
        """Move, or cast floating tensors (a mask keeps its dtype)."""
        return self.map(
            lambda x: x.to(target) if isinstance(target, torch.device) or x.is_floating_point() else x
        )

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.embeds, self.pooled, self.mask


def cat(parts: Sequence[Conditioning]) -> Conditioning:
    """Join batches; all of them have the same parts."""
    columns = zip(*(part._parts() for part in parts), strict=True)
    joined = (None if column[0] is None else torch.cat(column) for column in columns)
    return Conditioning(*joined)  # type: ignore[arg-type]
