"""The fine-tuning loss: pure functions on denoiser outputs."""

import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat
from safetune.diffusion import mse_per_sample, safe_target
from safetune.hgr.objective import mean_where


@torch.no_grad()
def teacher_targets(
    backbone: Backbone,
    noisy: Tensor,
    timesteps: Tensor,
    prompts: Conditioning,
    redirected: Conditioning,
    null: Conditioning,
    harm: Tensor,
    eta: float,
) -> Tensor:
    """safe_target (B, C, h, w) in one pass of the frozen base; a harmless row costs one evaluation of three.

    Call it with the adapters off (adapters.teacher). noisy (B, C, h, w), timesteps and harm (B,), prompts and
    redirected of B rows, null of one.
    """
    harmful = harm > 0
    count = int(harmful.sum())
    rows = cat([prompts, redirected.select(harmful), null.expand(count)])
    x, t = (
        torch.cat([noisy, noisy[harmful], noisy[harmful]]),
        torch.cat([timesteps, *[timesteps[harmful]] * 2]),
    )
    eps_cond, eps_redirected, eps_null = backbone.predict(x, t, rows).split([len(noisy), count, count])
    target = eps_cond.clone()
    target[harmful] = safe_target(
        eps_cond[harmful], eps_redirected, eps_null, harm[harmful].to(eps_cond.dtype), eta
    )
    return target


def unlearning_loss(
    predicted: Tensor, target: Tensor, harm: Tensor, clean_weight: float, timestep_weight: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted L2 to the safe target; loss (B,) and detached means of the harmful and the clean part."""
    error = mse_per_sample(predicted, target) * timestep_weight
    harmful = harm >= 0.5
    scalars = {"harmful_error": mean_where(error, harmful), "clean_error": mean_where(error, ~harmful)}
    return torch.where(harmful, error, clean_weight * error), scalars
