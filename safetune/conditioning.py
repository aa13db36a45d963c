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


def shift(conditioning: Conditioning, delta: Conditioning, strength: float = 1.0) -> Conditioning:
    """Add strength * delta, in the conditioning's precision; one row is added to every delta."""
    pooled = conditioning.pooled
    if pooled is not None and delta.pooled is not None:
        pooled = pooled + strength * delta.pooled.to(pooled)
    embeds = conditioning.embeds + strength * delta.embeds.to(conditioning.embeds)
    return Conditioning(embeds, pooled, conditioning.mask)


def replace_rows(conditioning: Conditioning, rows: Tensor, other: Conditioning) -> Conditioning:
    """A batch with the rows that the mask (B,) selects taken from another batch of B."""

    def choose(here: Tensor | None, there: Tensor | None) -> Tensor | None:
        if here is None or there is None:
            return here
        mask = rows.to(here.device).view(-1, *[1] * (here.dim() - 1))
        return torch.where(mask, there.to(here), here)

    parts = zip(conditioning._parts(), other._parts(), strict=True)
    return Conditioning(*(choose(here, there) for here, there in parts))  # type: ignore[arg-type]


def jitter(
    conditioning: Conditioning, spread: Conditioning, amount: float, seeds: Sequence[int]
) -> Conditioning:
    """Add normal noise of up to `amount` times `spread` (D,), (P,): how much is uniform, a draw for each row.

    A row depends on its own seed alone.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    share = torch.stack([torch.rand((), generator=generator) for generator in generators])

    def noised(values: Tensor, width: Tensor) -> Tensor:
        noise = torch.stack([torch.randn(values.shape[1:], generator=generator) for generator in generators])
        scale = amount * share.view(-1, *[1] * (values.dim() - 1))
        return values + (scale * noise).to(values) * width

    embeds, pooled = noised(conditioning.embeds, spread.embeds), conditioning.pooled
    if pooled is not None and spread.pooled is not None:
        pooled = noised(pooled, spread.pooled)
    return Conditioning(embeds, pooled, conditioning.mask)


def squared_norm(conditioning: Conditioning) -> Tensor:
    """Squared Euclidean norm (B,) of each row's embeddings, pooled ones included; fp32."""
    norm = conditioning.embeds.float().pow(2).sum((1, 2))
    return norm if conditioning.pooled is None else norm + conditioning.pooled.float().pow(2).sum(1)


def cat(parts: Sequence[Conditioning]) -> Conditioning:
    """Join batches; all of them have the same parts."""
    columns = zip(*(part._parts() for part in parts), strict=True)
    joined = (None if column[0] is None else torch.cat(column) for column in columns)
    return Conditioning(*joined)  # type: ignore[arg-type]
