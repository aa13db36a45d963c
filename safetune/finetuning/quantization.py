"""A frozen base whose linear layers are held in 4 or 8 bits, by bitsandbytes."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import BitsAndBytesConfig
from torch import Tensor, nn

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.loading import resolve_model

QUANTIZATIONS = ("4bit", "8bit")


def load_quantized(
    model: str | Path,
    quantization: str,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    variant: str | None = None,
) -> Backbone:
    """load_backbone, with the denoiser's linear layers in "4bit" (NF4, double quantisation, arXiv 2305.14314)
    or "8bit" (arXiv 2208.07339); LoRA and DoRA train on it.

    Everything else keeps `dtype`, which the linear layers compute in. The fingerprint is that of the weights
    before: a redirector belongs to the base model, however it is held. The weights pass through CPU memory
    in `dtype` once. On CUDA a folder or hub name is loaded by diffusers' own quantizer, which refuses CPUs.

    Raises ValueError for another quantization, RuntimeError when bitsandbytes is not installed.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization {quantization!r}; allowed: {', '.join(QUANTIZATIONS)}")
    import_bitsandbytes(f"quantization {quantization}")
    device = torch.device(device)
    backbone = load_backbone(model, "cpu", dtype, variant=variant)
    path = resolve_model(model)
    if device.type == "cuda" and Path(path).suffix != ".safetensors":
        replace_denoiser(backbone, path, bitsandbytes_config(quantization, dtype), device, variant)
    else:
        quantize_linears(backbone.denoiser, quantization, dtype, device)
    backbone.pipeline.to(device)
    return backbone


def bitsandbytes_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The configuration for diffusers of the same layers as quantize_linears makes."""
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def replace_denoiser(
    backbone: Backbone, path: str, config: BitsAndBytesConfig, device: torch.device, variant: str | None
) -> None:
    """Load the denoiser of a folder or hub name once more, quantized, and put it in the backbone's place."""
    components = backbone.pipeline.components
    name = next(name for name, module in components.items() if module is backbone.denoiser)
    denoiser: Any = backbone.denoiser
    with torch.cuda.device(device):
        quantized = type(denoiser).from_pretrained(
            path,
            subfolder=name,
            dtype=denoiser.dtype,
            use_safetensors=True,
            variant=variant,
            quantization_config=config,
        )
    backbone.denoiser = quantized.requires_grad_(False).eval()
    backbone.pipeline.register_modules(**{name: quantized})


def quantize_linears(
    module: nn.Module, quantization: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> None:
    """Put bitsandbytes' layers on `device` in the place of every nn.Linear of `module`, frozen.

    They compute in `dtype`. PEFT knows them by the mark that it leaves on the module.
    """
    linears = [(name, child) for name, child in module.named_modules() if type(child) is nn.Linear]
    for name, linear in linears:
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, quantized(linear, quantization, dtype).to(device))
    setattr(module, f"is_loaded_in_{quantization}", True)


def quantized(linear: nn.Linear, quantization: str, dtype: torch.dtype) -> nn.Module:
    """A layer of bitsandbytes with these weights; they are quantized when it moves to a device."""
    layers = import_bitsandbytes(f"quantization {quantization}").nn
    sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
    if quantization == "8bit":
        layer = layers.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, threshold=6.0)
        layer.weight = layers.Int8Params(linear.weight.data, requires_grad=False)
        layer.register_forward_pre_hook(prepare_on_cpu)
    else:
        layer = layers.Linear4bit(
            *sizes, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
        )
        layer.weight = layers.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
        )
        # On a CPU with such instructions a pass without gradients would repack the weights into a form that
        # cannot be trained through, and that takes widths of multiples of 64 only.
        layer.support_avx512bf16_for_cpu = False
    layer.bias = linear.bias
    layer.train(linear.training)
    return layer


def prepare_on_cpu(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Before a pass of an 8-bit layer on a CPU: what bitsandbytes and PEFT get wrong there.

    In evaluation mode it also rounds the inputs, 100 times slower. And DoRA moves the weights to the CPU,
    where they are, by which they lose their scales.
    """
    if inputs[0].device.type == "cpu":
        layer.train()
        weight: Any = layer.weight
        state: Any = layer.state
        if weight.SCB is None:
            weight.SCB = state.SCB


def import_bitsandbytes(purpose: str) -> ModuleType:
    """The module; RuntimeError that says how to install it when it is missing."""
    if find_spec("bitsandbytes") is None:
        raise RuntimeError(
            f"{purpose} needs bitsandbytes, which is not installed: pip install 'safetune-diffusion[bnb]', "
            "or pip install bitsandbytes"
        )
    return import_module("bitsandbytes")
