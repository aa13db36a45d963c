"""LoRA on the denoiser; the frozen teacher is the same model with its adapters off."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig
from torch import nn

# Name groups of target modules: suffixes as PEFT matches them.
TARGETS = {
    "cross-attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "linear": ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
}


def add_lora(denoiser: PeftAdapterMixin, rank: int, alpha: float, targets: str) -> None:
    """Attach a trainable LoRA that starts as the identity; ValueError for an unknown target group."""
    if targets not in TARGETS:
        raise ValueError(f"targets {targets!r}; allowed: {', '.join(TARGETS)}")
    denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS[targets])))


@contextmanager
def teacher(denoiser: nn.Module) -> Iterator[None]:
    """Within the block the denoiser is the frozen base: its adapters are off."""
    denoiser.disable_adapters()  # type: ignore[operator]
    try:
        yield
    finally:
        denoiser.enable_adapters()  # type: ignore[operator]
