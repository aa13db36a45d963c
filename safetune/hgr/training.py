"""The redirector's training apart from its loop: warm start, teacher targets, concept prototypes."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat, shift, squared_norm
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


def warm_start(
    hgr: HGR, prompts: Conditioning, safe_prompts: Conditioning, harmful: Tensor, steps: int,
    batch_size: int = 128, lr: float = 1.5e-3, seed: int = 0,
) -> float:  # fmt: skip
    """Fit delta to c - s(c), the HGR target to first order in the prompt; no pass of the denoiser.

    From zero, concepts are found one by one, and soon the weight on clean prompts holds the others at zero;
    from here all are on their way. harmful (N,) bool selects half of every batch. Returns the error of the
    last step, relative to that of delta = 0.
    """
    rng = np.random.default_rng([seed, steps])
    groups = [np.flatnonzero(harmful.cpu().numpy() == kind) for kind in (True, False)]
    optimizer = torch.optim.AdamW(hgr.parameters(), lr=lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    relative = 1.0
    for _ in range(steps):
        rows = torch.from_numpy(np.concatenate([rng.choice(group, batch_size // 2) for group in groups]))
        batch, safe = prompts.select(rows), safe_prompts.select(rows)
        delta, direction = Conditioning(*hgr(batch.embeds)), shift(batch, safe, -1.0)
        error = squared_norm(shift(direction, delta, -1.0)).mean()
        optimizer.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(hgr.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        relative = error.item() / squared_norm(direction).mean().item()
    return relative


def unfound_concepts(hgr: HGR, share: float = 0.2) -> list[str]:
    """Concepts whose prototype is shorter than `share` of the longest: training did not find them."""
    norms = squared_norm(hgr.prototype_delta()).sqrt()
    return [name for name, norm in zip(hgr.concepts, norms, strict=True) if norm < share * norms.max()]


def set_prototypes(hgr: HGR, prompts: Conditioning, concepts: Sequence[str]) -> None:
    """Store the mean delta of the prompts of each of hgr.concepts; zeros for a concept without prompts."""
    delta = hgr.delta(prompts)
    for row, concept in enumerate(hgr.concepts):
        members = torch.tensor([name == concept for name in concepts], device=delta.embeds.device)
        if members.any():
            hgr.prototypes[row] = delta.embeds[members].mean(0)
            if delta.pooled is not None:
                hgr.pooled_prototypes[row] = delta.pooled[members].mean(0)
