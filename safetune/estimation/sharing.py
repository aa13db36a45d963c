"""Bytes that lie on a GPU through all of training, and how processes share them: plain arithmetic."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safetune.finetuning.plan import Launch

SMALLEST_8_BIT = 4096
"""Weights of a tensor from which on bitsandbytes holds its states in 8 bits."""

BUCKET = 500_000_000
"""DeepSpeed's default of the gradients that are reduced at once, in numbers."""

LIVE = 1_000_000_000
"""DeepSpeed's default of the weights that ZeRO-3 gathers at once, in numbers."""


@dataclass(frozen=True)
class Resident:
    """Bytes on one GPU through all of training."""

    weights: int
    """Of the denoiser and of what is trained."""
    gradients: int
    """After the way back."""
    optimizer: int
    """States, and float32 weights beside those in 16 bits (ZeRO)."""
    buffers: int
    """Gradients on their way to others, and weights that are gathered from them."""
    stepping: int = 0
    """What the optimizer's step takes besides."""


def weight_bytes(module: nn.Module, quantization: str) -> int:
    """Bytes of weights and buffers, with the linear layers of the base quantized ("none", "4bit", "8bit").

    4 bits (arXiv 2305.14314): a scale of 8 bits for 64 weights, and one of 32 bits for 256 of those. 8 bits
    (arXiv 2208.07339): a scale of 32 bits for each row.
    """
    quantized = 0.0
    small: set[int] = set()
    for linear in base_linears(module) if quantization != "none" else ():
        weight = linear.weight
        small.add(id(weight))
        if quantization == "4bit":
            quantized += weight.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256))
        else:
            quantized += weight.numel() + 4 * len(weight)
    return int(quantized) + sum(size_of(value) for value in values_of(module) if id(value) not in small)


def dequantized_bytes(module: nn.Module, quantization: str, dtype: torch.dtype) -> int:
    """Bytes of the largest quantized layer: one at a time is written out in `dtype`, to multiply with."""
    if quantization == "none":
        return 0
    return max(linear.weight.numel() for linear in base_linears(module)) * dtype.itemsize


def base_linears(module: nn.Module) -> Iterable[nn.Linear]:
    """The linear layers that quantization replaces: the base's, not the adapter's."""
    named = module.named_modules()
    return (layer for name, layer in named if type(layer) is nn.Linear and ".lora_" not in name)


def values_of(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def size_of(tensor: torch.Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def state_bytes(trained: Iterable[nn.Parameter], optimizer: str) -> int:
    """Bytes of AdamW's two states on the GPU; paged ones can leave it, and do not count."""
    if optimizer.startswith("paged"):
        return 0
    total = 0.0
    for param in trained:
        in_8_bits = optimizer == "adamw8bit" and param.numel() >= SMALLEST_8_BIT
        total += param.numel() * 2 * (1 + 4 / 256 if in_8_bits else 4)
    return int(total)


def gathered_bytes(denoiser: Any, dtype: torch.dtype) -> int:
    """Weights that FSDP2 holds whole in a pass: a block at work, one on its way, and all that is in none."""
    kinds = set(denoiser._no_split_modules)
    blocks = [module for module in denoiser.modules() if type(module).__name__ in kinds]
    inner: dict[int, int] = {}
    for block in blocks:  # outer blocks come first: a parameter belongs to the innermost
        for param in block.parameters():
            inner[id(param)] = id(block)
    sizes = dict.fromkeys((id(block) for block in blocks), 0)
    outside = 0
    for param in denoiser.parameters():
        if id(param) in inner:
            sizes[inner[id(param)]] += param.numel()
        else:
            outside += param.numel()
    return (2 * max(sizes.values(), default=0) + outside) * dtype.itemsize


def share(
    denoiser: Any,
    launch: Launch,
    *,
    quantization: str,
    optimizer: str,
    passes: torch.dtype,
) -> Resident:
    """What one of the launch's GPUs holds of a denoiser that is ready to be trained.

    `passes` is the precision of the passes, in which DeepSpeed holds the weights too.
    """
    trained = [param for param in denoiser.parameters() if param.requires_grad]
    count = sum(param.numel() for param in trained)
    weights, states = weight_bytes(denoiser, quantization), state_bytes(trained, optimizer)
    gradients = sum(size_of(param) for param in trained)
    on_gpu = 0 if launch.offload else 1
    if launch.mode in ("single", "ddp"):
        return Resident(weights, gradients, states, gradients if launch.mode == "ddp" else 0)
    if launch.mode == "fsdp2":
        mine = [on_gpu * size // launch.processes for size in (weights, gradients, states)]
        return Resident(mine[0], mine[1], mine[2], gathered_bytes(denoiser, passes))
    numbers = sum(param.numel() for param in denoiser.parameters())
    if quantization == "none":
        weights = numbers * passes.itemsize
    gradients = count * passes.itemsize
    buffers = min(count, BUCKET) * passes.itemsize
    if launch.mode == "zero3":
        weights = on_gpu * weights // launch.processes
        buffers += min(numbers, LIVE) * passes.itemsize
    if launch.mode != "zero1":
        gradients = on_gpu * gradients // launch.processes
    masters = 4 * count // launch.processes  # float32 weights of this process's share; gradients take as much
    optimizer_bytes = on_gpu * (states // launch.processes + masters)
    return Resident(weights, gradients, optimizer_bytes, buffers, stepping=on_gpu * masters)
