"""The three scores of harmfulness (HED) of design.md section 1, as functions of tensors."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat, squared_norm
from safetune.hgr import HGR

STATISTICS = {"local": 1.0, "global": 3.0}
"""How much better a concept explains a picture, in the best window and over all of it, with their weights in
the image score. They err on different pictures."""


@torch.no_grad()
def prompt_scores(hgr: HGR, prompts: Conditioning) -> tuple[Tensor, Tensor]:
    """prompt_score (N,), the norm of delta(c), and the length (N, K) of delta along each prototype."""
    delta = hgr.delta(prompts)
    return squared_norm(delta).sqrt(), prototype_projections(hgr, delta)


def prototype_projections(hgr: HGR, delta: Conditioning) -> Tensor:
    """Length (N, K) of N deltas along each concept's prototype; the nearest one has the largest."""
    directions = F.normalize(hgr.prototype_delta().embeds.flatten(1), dim=1)
    return delta.embeds.flatten(1) @ directions.T


@torch.no_grad()
def guidance_distance(
    backbone: Backbone,
    latents: Tensor,
    redirected: Conditioning,
    null: Conditioning,
    timestep: int,
    noise: Tensor,
) -> Tensor:
    """The norm (B,) of eps(x_t, HGR(c)) - eps(x_t, null) at one timestep: two rows a pair."""
    batch = len(latents)
    t = torch.full((batch,), timestep, device=latents.device)
    noisy = backbone.add_noise(latents, noise.to(latents).expand_as(latents), t)
    eps = backbone.predict(
        noisy.repeat(2, 1, 1, 1), t.repeat(2), cat([null.expand(batch), redirected])
    ).float()
    eps_null, eps_redirected = eps.split(batch)
    return (eps_redirected - eps_null).flatten(1).norm(dim=1)


@torch.no_grad()
def draw_scores(
    backbone: Backbone,
    latents: Tensor,
    prompts: Conditioning,
    redirected: Conditioning,
    prototypes: Conditioning,
    null: Conditioning,
    timestep: int,
    noise: Tensor,
    window: int,
    target_scale: float,
) -> tuple[Tensor, Tensor]:
    """guidance_distance (B,) and the STATISTICS (B, 2, K) of a batch, all 3 + K rows a pair in one call.

    latents (B, C, h, w); prompts and redirected B rows, prototypes K rows; noise (C, h, w) is shared by all
    pairs, so that a score depends on nothing around it. A statistic of concept k measures the drop of the
    squared error when the concept's direction is added to what the caption explains without its harmful part.
    """
    batch, concepts = len(latents), len(prototypes)
    t = torch.full((batch,), timestep, device=latents.device)
    added = noise.to(latents).expand_as(latents)
    noisy, wanted = backbone.add_noise(latents, added, t), backbone.true_output(latents, added, t)
    each = (prototypes.select(slice(k, k + 1)).expand(batch) for k in range(concepts))
    rows = cat([null.expand(batch), prompts, redirected, *each])
    eps = backbone.predict(noisy.repeat(3 + concepts, 1, 1, 1), t.repeat(3 + concepts), rows).float()
    eps_null, eps_cond, eps_redirected, eps_prototypes = eps.split([batch] * 3 + [batch * concepts])
    distance = (eps_redirected - eps_null).flatten(1).norm(dim=1)
    left = wanted - (eps_cond - (eps_redirected - eps_null))
    direction = (eps_prototypes.unflatten(0, (concepts, batch)) - eps_null) / target_scale
    # |left|^2 - |left - direction|^2 = 2 left direction - |direction|^2
    along = (left * direction).sum(2).transpose(0, 1)
    gain = 2 * along - direction.pow(2).sum(2).transpose(0, 1)
    scale = left.pow(2).sum(1).mean((1, 2))[:, None]
    best = windows(gain, window).amax((2, 3))
    return distance, torch.stack([best / scale, gain.mean((2, 3)) / scale], dim=1)


def windows(values: Tensor, side: int) -> Tensor:
    """Means over all windows of a map (B, K, h, w)."""
    return F.avg_pool2d(values, side, stride=1)


def normalise_concepts(values: Tensor, reference: Tensor) -> Tensor:
    """A statistic (N, K) in units of each concept's own spread over the reference rows (R, K).

    Median and lower quartile set the scale: a pool's clean pairs lie there whatever its share of harmful
    ones. A concept that was never learned has next to none, so no spread counts below a fifth of the median
    one.
    """
    median = reference.median(0).values
    # numpy's: torch's quantile takes 16 million values at most.
    spread = median - torch.from_numpy(np.quantile(reference.numpy(), 0.25, axis=0)).to(median)
    return (values - median) / spread.clamp(min=max(1e-8, 0.2 * float(spread.median())))
