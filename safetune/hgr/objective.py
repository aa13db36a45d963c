"""The redirector's loss: pure functions on denoiser outputs."""

import torch
from torch import Tensor

from safetune.diffusion import coarse, mse_along, mse_per_sample


def redirection_loss(
    eps_redirected: Tensor,
    target: Tensor,
    eps_null: Tensor,
    delta_norm: Tensor,
    harmful: Tensor,
    clean_weight: float,
    delta_weight: float,
    along_weight: float,
    timestep_weight: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L2 to the HGR target, heavier on clean prompts, with a small squared norm of delta on clean ones.

    Of a harmful prompt's error, the part along target - eps_null counts 1 + along_weight times: it says
    whether the concept is guided away from as far as asked, where the rest only says how cleanly. Without it
    L2 settles for less guidance than the target has, and for least on the prompts that are hardest to tell.
    It is taken of large areas and of what is finer by themselves: else the areas, which are easily met, make
    up for the finer part, and guidance leads past the safe picture to the opposite of the object's colours.
    eps (B, C, h, w), delta_norm (B,) the squared norm of delta, harmful (B,) bool, timestep_weight (B,);
    returns the loss (B,) and detached means.
    """
    error = mse_per_sample(eps_redirected, target) * timestep_weight
    direction = target - eps_null
    areas = coarse(direction)
    along = mse_along(eps_redirected, target, areas) + mse_along(eps_redirected, target, direction - areas)
    on_clean = clean_weight * error + delta_weight * delta_norm
    loss = torch.where(harmful, error + along_weight * along * timestep_weight, on_clean)
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
