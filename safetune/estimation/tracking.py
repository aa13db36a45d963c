"""Bytes of a pass that is run without numbers: on the meta device every tensor has a size and no content."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

IN_16_BITS = {F.linear, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention}
"""What autocast computes in 16 bits, as far as diffusion models call it."""

IN_32_BITS = {F.group_norm, F.layer_norm, Tensor.softmax}
"""What autocast on CUDA computes in float32; on a CPU these keep the type of their input."""


class LiveBytes(TorchDispatchMode):
    """Within the block: `live` bytes of the tensors made there and still in use, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.made: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {memory_of(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)}
        output = func(*args, **(kwargs or {}))
        for value in tree_iter(output):
            if isinstance(value, Tensor) and memory_of(value) not in given | self.made:
                self._add(value.untyped_storage(), memory_of(value))
        return output

    def _add(self, storage: torch.UntypedStorage, memory: int) -> None:
        self.made.add(memory)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, storage.nbytes(), memory)

    def _remove(self, size: int, memory: int) -> None:
        self.made.discard(memory)
        self.live -= size


def memory_of(tensor: Tensor) -> int:
    """A number for the memory behind a tensor, which its views share."""
    return tensor.untyped_storage()._cdata


class MetaKernels(TorchFunctionMode):
    """Within the block the meta device has fused attention and autocast, as GPUs and CPUs do.

    PyTorch itself would take the plain attention there, whose scores (L, L) no device holds, and no autocast.
    """

    def __init__(self, autocast: torch.dtype | None, on_cuda: bool) -> None:
        super().__init__()
        self.autocast, self.on_cuda = autocast, on_cuda
        self.casts: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.autocast is not None and func in IN_16_BITS:
            args, kwargs = tree_map(self._to_16_bits, (args, kwargs))
        elif self.autocast is not None and self.on_cuda and func in IN_32_BITS:
            args, kwargs = tree_map(to_32_bits, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **kwargs)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self.casts.clear()  # as autocast does; what the way back needs is held by the graph

    def _to_16_bits(self, value: Any) -> Any:
        """As autocast does: trained weights are cast once a pass, all else where it is needed."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.autocast)
        return self.casts.setdefault(id(value), value.to(self.autocast))


def to_32_bits(value: Any) -> Any:
    """A tensor of floats in float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
