"""What a training step of the redirector computes: the teacher's target and the concept prototypes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat
from safetune.diffusion import redirect_target
from safetune.hgr.model import HGR


@torch.no_grad()
def teacher_targets(
    backbone: Backbone,
    noisy: Tensor,
    timesteps: Tensor,
    prompts: Conditioning,
    safe_prompts: Conditioning,
    null: Conditioning,
    harmful: Tensor,
    guidance_scale: float,
    strength: float,
) -> Tensor:
    """HGR targets (B, C, h, w) in one batched pass: null for every row, c and s(c) for harmful rows only.

    noisy (B, C, h, w), timesteps (B,), conditionings of B rows (null of one), harmful (B,) bool.
    """
    count = int(harmful.sum())
    rows = cat([null.expand(len(noisy)), prompts.select(harmful), safe_prompts.select(harmful)])
    x, t = (
        torch.cat([noisy, noisy[harmful], noisy[harmful]]),
        torch.cat([timesteps, *[timesteps[harmful]] * 2]),
    )
    eps_null, eps_cond, eps_safe = backbone.predict(x, t, rows).split([len(noisy), count, count])
    target = eps_null.clone()
    target[harmful] = redirect_target(eps_null[harmful], eps_cond, eps_safe, guidance_scale, strength)
    return target


def set_prototypes(hgr: HGR, prompts: Conditioning, concepts: Sequence[str]) -> None:
    """Store the mean delta of the prompts of each of hgr.concepts; zeros for a concept without prompts."""
    delta = hgr.delta(prompts)
    for row, concept in enumerate(hgr.concepts):
        members = torch.tensor([name == concept for name in concepts], device=delta.embeds.device)
        if members.any():
            hgr.prototypes[row] = delta.embeds[members].mean(0)
            if delta.pooled is not None:
                hgr.pooled_prototypes[row] = delta.pooled[members].mean(0)
