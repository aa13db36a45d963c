"""The redirector's loss: pure functions on denoiser outputs."""

import torch
from torch import Tensor

from safetune.diffusion import mse_per_sample


def redirection_loss(
    eps_redirected: Tensor,
    target: Tensor,
    delta_norm: Tensor,
    harmful: Tensor,
    clean_weight: float,
    delta_weight: float,
    timestep_weight: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L2 to the HGR target, heavier on clean prompts, with a small squared norm of delta on clean ones.

    eps (B, C, h, w), delta_norm (B,) the squared norm of delta, harmful (B,) bool, timestep_weight (B,);
    returns the loss (B,) and detached means.
    """
    error = mse_per_sample(eps_redirected, target) * timestep_weight
    loss = torch.where(harmful, error, clean_weight * error + delta_weight * delta_norm)
    scalars = {
        "harmful_error": mean_where(error, harmful),
        "clean_error": mean_where(error, ~harmful),
        "harmful_delta": mean_where(delta_norm.sqrt(), harmful),
        "clean_delta": mean_where(delta_norm.sqrt(), ~harmful),
    }
    return loss, scalars


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values (B,) that the mask selects; 0 when it selects none. Detached."""
    values = values.detach()
    return (values * mask).sum() / mask.sum().clamp(min=1)
