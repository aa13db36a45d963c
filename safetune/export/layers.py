"""An adapter as layers by module path, apart from any file format."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Layers = dict[str, "LoraLayer"]
"""Layers by the path of their module in the denoiser, such as `mid_block.attentions.0.proj_in`."""


@dataclass(frozen=True)
class LoraLayer:
    """A low-rank update of one weight, in fp32."""

    down: Tensor
    """A: (r, in), or (r, in, kh, kw) for a convolution."""
    up: Tensor
    """B: (out, r), or (out, r, 1, 1); alpha / rank is multiplied in."""
    magnitude: Tensor | None = None
    """DoRA's norms of the rows of the new weight (out,), or (1, out, 1, 1)."""

    @property
    def rank(self) -> int:
        return len(self.down)

    def delta(self) -> Tensor:
        """B A (out, in), a convolution's as (out, in kh kw)."""
        return self.up.flatten(1) @ self.down.flatten(1)

    def applied(self, weight: Tensor) -> Tensor:
        """The new weight, in fp32; DoRA (arXiv 2402.09353, equation 5) norms its rows."""
        changed = weight.float() + self.delta().view_as(weight)
        if self.magnitude is None:
            return changed
        scale = self.magnitude.flatten() / changed.flatten(1).norm(dim=1)
        return changed * scale.view(-1, *[1] * (weight.dim() - 1))

    def norm(self) -> float:
        """Frobenius norm of B A, from two r x r products."""
        up, down = self.up.flatten(1).double(), self.down.flatten(1).double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())

    def sketch(self) -> float:
        """The product u B A v with vectors of random signs: any change of the update changes it."""
        generator = torch.Generator().manual_seed(0)
        up, down = self.up.flatten(1).double(), self.down.flatten(1).double()
        left = torch.randint(0, 2, (len(up),), generator=generator) * 2.0 - 1
        right = torch.randint(0, 2, (down.shape[1],), generator=generator) * 2.0 - 1
        return float((left.double() @ up) @ (down @ right.double()))


def scaled(layers: Layers, strength: float) -> Layers:
    """The update times `strength`; ValueError for DoRA, whose norm makes it no multiple of anything."""
    if strength != 1 and has_magnitudes(layers):
        raise ValueError(f"strength {strength}: a DoRA adapter has no strength but 1")
    return {name: replace(layer, up=layer.up * strength) for name, layer in layers.items()}


def has_magnitudes(layers: Layers) -> bool:
    """Whether it is a DoRA."""
    return any(layer.magnitude is not None for layer in layers.values())


@torch.no_grad()
def apply_layers(denoiser: nn.Module, layers: Layers) -> None:
    """Merge an adapter into the weights in place; ValueError for a layer that does not fit."""
    modules = dict(denoiser.named_modules())
    for name, layer in layers.items():
        weight = getattr(modules.get(name), "weight", None)
        shape = (len(layer.up), layer.down[0].numel())
        if weight is None or (weight.shape[0], weight[0].numel()) != shape:
            found = "is not there" if weight is None else f"has a weight of {tuple(weight.shape)}"
            raise ValueError(f"layer {name} of the adapter is {shape}, but in the base model it {found}")
        weight.copy_(layer.applied(weight))


def differing_layer(expected: Layers, found: Layers, tolerance: float) -> str | None:
    """What is wrong with the first layer whose update differs by more than `tolerance` of its norm."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"layer {name} is missing"
        if name not in expected:
            return f"layer {name} should not be there"
        wanted, got = expected[name], found[name]
        norm = wanted.norm()
        difference = float((got.delta() - wanted.delta()).norm())
        if not difference <= tolerance * norm:  # also where it is no number
            return f"layer {name} differs by {difference / norm if norm else difference:.1%} of its update"
        if (wanted.magnitude is None) != (got.magnitude is None):
            return f"layer {name} lost its DoRA magnitudes"
        if wanted.magnitude is not None and got.magnitude is not None:
            wanted_row, got_row = wanted.magnitude.flatten(), got.magnitude.flatten()
            if not float((got_row - wanted_row).norm()) <= tolerance * float(wanted_row.norm()):
                return f"layer {name} has other DoRA magnitudes"
    return None


def to_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors for a file: alphas stay in fp32, where every rank is exact."""
    return {
        name: (value if name.endswith(".alpha") else value.to(dtype)).contiguous()
        for name, value in tensors.items()
    }
