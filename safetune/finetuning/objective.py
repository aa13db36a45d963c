"""The fine-tuning loss: pure functions on denoiser outputs."""

import torch
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat
from safetune.diffusion import min_snr_weight, mse_per_sample, safe_target, signal_weight


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
    denoiser: nn.Module | None = None,
    time_ids: Tensor | None = None,
) -> Tensor:
    """safe_target (B, C, h, w) in one pass of the frozen base; a harmless row costs one evaluation of three.

    The base is `denoiser`, or the backbone's own, with the adapters off (adapters.teacher).
    noisy (B, C, h, w), timesteps and harm (B,), prompts and redirected of B rows, null of one, time_ids
    (B, 6) for SDXL alone.
    """
    harmful = harm > 0
    count = int(harmful.sum())
    rows = cat([prompts, redirected.select(harmful), null.expand(count)])
    x, t = (
        torch.cat([noisy, noisy[harmful], noisy[harmful]]),
        torch.cat([timesteps, *[timesteps[harmful]] * 2]),
    )
    ids = None if time_ids is None else torch.cat([time_ids, *[time_ids[harmful]] * 2])
    output = backbone.predict(x, t, rows, denoiser, ids)
    eps_cond, eps_redirected, eps_null = output.split([len(noisy), count, count])
    target = eps_cond.clone()
    target[harmful] = safe_target(
        eps_cond[harmful], eps_redirected, eps_null, harm[harmful].to(eps_cond.dtype), eta
    )
    return target


def timestep_weight(backbone: Backbone, timesteps: Tensor, kind: str, cap: float, gamma: float) -> Tensor:
    """Loss weight (B,) of timesteps, by kind: "signal" (at most `cap`), "min-snr" (of `gamma`) or "none".

    ValueError for min-snr with a backbone of flow matching.
    """
    if kind == "signal":
        return signal_weight(timesteps, backbone.alphas_cumprod, cap)
    if kind == "none":
        return torch.ones(len(timesteps), device=timesteps.device)
    if backbone.alphas_cumprod is None:
        raise ValueError("weighting min-snr: flow matching has no such ratio; give none")
    is_velocity = backbone.prediction_type == "v_prediction"
    return min_snr_weight(timesteps, backbone.alphas_cumprod, gamma, is_velocity)


def unlearning_loss(
    predicted: Tensor, target: Tensor, timestep_weight: Tensor, pair_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """L2 to the safe target; weights (B,). The loss (B,), and the error without pair_weight, detached."""
    error = mse_per_sample(predicted, target) * timestep_weight
    return error * pair_weight, error.detach()
