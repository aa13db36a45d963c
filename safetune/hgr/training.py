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
from safetune.hgr.rows import EncodedRows


@torch.no_grad()
def teacher_targets(
    backbone: Backbone,
    noisy: Tensor,
    timesteps: Tensor,
    positives: Conditioning,
    negatives: Conditioning,
    null: Conditioning,
    harmful: Tensor,
    guidance_scale: float,
    strength: float,
) -> tuple[Tensor, Tensor]:
    """HGR targets and eps(null), both (B, C, h, w), in one batched pass: three rows a harmful one, else one.

    A harmful row has eps(null) + strength * w/(w-1) * (eps(positive) - eps(negative)), its prompts c and s(c)
    where there is a rewriting, the concept and null where there is none. Clean rows have eps(null).
    noisy (B, C, h, w), timesteps (B,), conditionings of B rows (null of one), harmful (B,) bool.
    """
    count = int(harmful.sum())
    rows = cat([null.expand(len(noisy)), positives.select(harmful), negatives.select(harmful)])
    x, t = (
        torch.cat([noisy, noisy[harmful], noisy[harmful]]),
        torch.cat([timesteps, *[timesteps[harmful]] * 2]),
    )
    eps_null, eps_positive, eps_negative = backbone.predict(x, t, rows).split([len(noisy), count, count])
    target = eps_null.clone()
    target[harmful] = redirect_target(eps_null[harmful], eps_positive, eps_negative, guidance_scale, strength)
    return target, eps_null


def warm_start(
    hgr: HGR, encoded: EncodedRows, harmful_rows: np.ndarray, clean_rows: np.ndarray, steps: int,
    batch_size: int = 128, lr: float = 1.5e-3, seed: int = 0,
) -> float:  # fmt: skip
    """Fit delta to positive - negative, the HGR target to first order in the prompt; no pass of the denoiser.

    From zero, concepts are found one by one, and soon the weight on clean prompts holds the others at zero;
    from here all are on their way. Half of every batch is harmful. Returns the error of the last step,
    relative to that of delta = 0.
    """
    rng = np.random.default_rng([seed, steps])
    device = hgr.positions.device
    optimizer = torch.optim.AdamW(hgr.parameters(), lr=lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    relative = 1.0
    for _ in range(steps):
        drawn = [rng.choice(group, batch_size // 2) for group in (harmful_rows, clean_rows)]
        prompts, positives, negatives, _ = encoded.batch(torch.from_numpy(np.concatenate(drawn)), device)
        delta, direction = Conditioning(*hgr(prompts.embeds)), shift(positives, negatives, -1.0)
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


def set_prototypes(hgr: HGR, encoded: EncodedRows, concepts: Sequence[str]) -> None:
    """Store the mean delta of the prompts of each of hgr.concepts; zeros for a concept without prompts.

    `concepts` names each row's concept, "" for a clean one.
    """
    for row, concept in enumerate(hgr.concepts):
        members = torch.tensor([index for index, name in enumerate(concepts) if name == concept])
        if len(members):
            prompts = encoded.table.select(encoded.prompts[members]).to(hgr.prototypes.device)
            delta = hgr.delta(prompts)
            hgr.prototypes[row] = delta.embeds.mean(0)
            if delta.pooled is not None:
                hgr.pooled_prototypes[row] = delta.pooled.mean(0)
