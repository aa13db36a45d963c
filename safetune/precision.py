"""The device there is, and the precision that it computes fast in."""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

NAMES = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}
PASSES = {name: dtype for dtype, name in NAMES.items()}
"""What passes compute in, by Accelerate's name of a `mixed_precision`."""


def fast_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU; of the GPU by default, if any.

    A CPU without bf16 instructions emulates them: TinySD ran 20 times slower in bf16 than in fp32 there
    (AVX2 only), and 4 times faster where the CPU has them.
    """
    kind = torch.device(device or fast_device()).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "cpu":
        has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.float32


def resolve_dtype(name: str, device: torch.device | str | None = None) -> torch.dtype:
    """The dtype of that name (float32, bfloat16 or float16), where "auto" asks the hardware."""
    if name == "auto":
        return fast_dtype(device)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def held_dtype(base_dtype: str, passes: torch.dtype, on_gpu: bool, trained: bool) -> torch.dtype:
    """What fine-tuning holds a base in, by its option `base_dtype`.

    "auto" is what the passes compute in, but float32 for weights that train and for all weights on a CPU.
    """
    if base_dtype != "auto":
        dtype: torch.dtype = getattr(torch, base_dtype)
        return dtype
    return passes if on_gpu and not trained else torch.float32


def resolve_precision(name: str) -> str:
    """Accelerate's name (no, fp16 or bf16) of a `mixed_precision`, where "auto" asks the hardware."""
    return NAMES[fast_dtype()] if name == "auto" else name


class PlainBackwardAttention:
    """Attention of a UNet without the fused kernel where a gradient is wanted, with it elsewhere.

    On a CPU the way back through PyTorch's fused attention takes a third longer.
    """

    def __init__(self) -> None:
        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: object, **options: object) -> Tensor:
        processor = self.plain if torch.is_grad_enabled() else self.fused
        return processor(attn, hidden_states, *args, **options)


def use_plain_backward(denoiser: nn.Module, device: torch.device) -> None:
    """On a CPU, give a UNet of small latents (32 a side at most) PlainBackwardAttention.

    Larger latents keep the fused kernel: plain attention holds all scores in memory.
    """
    small = isinstance(denoiser, UNet2DConditionModel) and int(denoiser.config.sample_size) <= 32
    if device.type == "cpu" and small:
        denoiser.set_attn_processor(PlainBackwardAttention())  # type: ignore[operator]
