"""Which weights of a UNet are cross-attention: the part that reads the prompt."""

from torch import nn


def cross_attentions(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Cross-attention modules of a UNet by their path; ValueError for a denoiser that has none."""
    found = {name: module for name, module in denoiser.named_modules() if name.endswith(".attn2")}
    if not found:
        raise ValueError(
            f"{type(denoiser).__name__} has no cross-attention of the UNet's kind (attn2): UCE and ESD are "
            "for Stable Diffusion 1.x, 2.x and XL"
        )
    return found


def split_parameters(denoiser: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Parameters by name, (of cross-attention, all others)."""
    paths = tuple(f"{name}." for name in cross_attentions(denoiser))
    parameters = dict(denoiser.named_parameters())
    inside = {name: value for name, value in parameters.items() if name.startswith(paths)}
    return inside, {name: value for name, value in parameters.items() if name not in inside}
