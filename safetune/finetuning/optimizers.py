"""Optimizers by name: PyTorch's AdamW, and those of bitsandbytes that need less memory."""

from collections.abc import Sequence

import torch
from torch.nn import Parameter

from safetune.finetuning.quantization import import_bitsandbytes

BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw8bit": "PagedAdamW8bit"}
"""Names of options and of bitsandbytes' classes."""


def build_optimizer(
    name: str, params: Sequence[Parameter], lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """AdamW of `params`; `lr` is its peak, a schedule scales it.

    "adamw" holds two float32 states per weight (one fused kernel on CUDA). "adamw8bit" holds them in 8 bits
    (arXiv 2110.02861), except for tensors of fewer than 4096 weights. The "paged_" ones move their states to
    CPU memory when the GPU's is full; on a CPU there is nothing to page and they warn.

    Raises ValueError for another name, RuntimeError when bitsandbytes is needed but not installed.
    """
    if name == "adamw":
        fused = all(p.is_cuda for p in params)
        return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=fused)
    if name not in BITSANDBYTES:
        raise ValueError(f"optimizer {name!r}; allowed: {', '.join(['adamw', *BITSANDBYTES])}")
    optimizers = import_bitsandbytes(f"optimizer {name}").optim
    optimizer: torch.optim.Optimizer = getattr(optimizers, BITSANDBYTES[name])(
        params, lr=lr, weight_decay=weight_decay
    )
    return optimizer
