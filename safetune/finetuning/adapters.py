"""What is trained: a LoRA on the denoiser, with learned magnitudes (DoRA) or not, or all of its weights.

The frozen teacher of an adapter is the same model with the adapter off; that of all weights is a copy.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
FEED_FORWARD = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")

# SD 3 joins text and picture in one attention: its "cross" part is what the text brings into it.
PICTURE = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
JOINT_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")

TARGETS = {
    "unet": {
        "cross-attention": CROSS,
        "self-attention": SELF,
        "attention": SELF + CROSS,
        "linear": SELF + CROSS + FEED_FORWARD,
        "linear+conv": SELF + CROSS + FEED_FORWARD + CONVOLUTIONS,
    },
    "transformer": {
        "cross-attention": TEXT,
        "self-attention": PICTURE,
        "attention": PICTURE + TEXT,
        "linear": PICTURE + TEXT + JOINT_FEED_FORWARD,
    },
}
"""Name groups of target modules, by kind of denoiser: suffixes as PEFT matches them."""


def add_lora(
    denoiser: nn.Module, rank: int, alpha: float, targets: str, dropout: float = 0.0, dora: bool = False
) -> None:
    """Attach a trainable LoRA, or DoRA, in fp32 that starts as the identity.

    ValueError for a target group that the kind of denoiser does not have.
    """
    groups = TARGETS["unet" if hasattr(denoiser, "down_blocks") else "transformer"]
    if targets not in groups:
        raise ValueError(f"targets {targets!r}; allowed for {type(denoiser).__name__}: {', '.join(groups)}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(groups[targets]),
        use_dora=dora,
    )
    denoiser.add_adapter(config)  # type: ignore[operator]
    for param in trainable(denoiser):
        param.data = param.data.float()


def trainable(denoiser: nn.Module) -> list[nn.Parameter]:
    """Parameters that want a gradient."""
    return [param for param in denoiser.parameters() if param.requires_grad]


@contextmanager
def teacher(denoiser: nn.Module) -> Iterator[None]:
    """Within the block the denoiser is the frozen base.

    PEFT's own switch also takes the gradients off the adapter, which sharded training does not stand.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def frozen_copy(denoiser: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in that precision that takes no gradient."""
    return copy.deepcopy(denoiser).to(dtype).requires_grad_(False).eval()
