"""The three scores of harmfulness (HED) of design.md section 1, as functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat, squared_norm
from safetune.hgr import HGR


@torch.no_grad()
def prompt_scores(hgr: HGR, prompts: Conditioning) -> tuple[Tensor, Tensor]:
    """prompt_score (N,), the norm of delta(c); and the concept (N,) whose prototype is nearest in angle."""
    delta = hgr.delta(prompts)
    return squared_norm(delta).sqrt(), prototype_projections(hgr, delta).argmax(1)


def prototype_projections(hgr: HGR, delta: Conditioning) -> Tensor:
    """Length (N, K) of N deltas along each concept's prototype; the nearest one has the largest."""
    directions = F.normalize(hgr.prototype_delta().embeds.flatten(1), dim=1)
    return delta.embeds.flatten(1) @ directions.T


@torch.no_grad()
def pair_scores(
    backbone: Backbone,
    latents: Tensor,
    prompts: Conditioning,
    redirected: Conditioning,
    prototypes: Conditioning,
    null: Conditioning,
    draws: Sequence[tuple[int, Tensor]],
    window: int,
    target_scale: float,
) -> tuple[Tensor, Tensor]:
    """guidance_score (B,) and image improvement (B, K) of a batch of pairs, all passes of a draw in one call.

    latents (B, C, h, w); prompts and redirected B rows, prototypes K rows; draws are (timestep, noise
    (C, h, w)), shared by all pairs, so that a score depends on nothing around it. The improvement of
    prototype k is the drop of the squared error, relative to its mean, in the best local window of the
    latent, when the concept's direction is added to what the caption explains without its harmful part.
    """
    batch, concepts = len(latents), len(prototypes)
    distance = latents.new_zeros(batch)
    gain = latents.new_zeros(batch, concepts, *latents.shape[2:])
    scale = latents.new_zeros(batch)
    each = (prototypes.select(slice(k, k + 1)).expand(batch) for k in range(concepts))
    rows = cat([null.expand(batch), prompts, redirected, *each])
    for timestep, noise in draws:
        t = torch.full((batch,), timestep, device=latents.device)
        added = noise.to(latents).expand_as(latents)
        noisy, wanted = backbone.add_noise(latents, added, t), backbone.true_output(latents, added, t)
        eps = backbone.predict(noisy.repeat(3 + concepts, 1, 1, 1), t.repeat(3 + concepts), rows).float()
        eps_null, eps_cond, eps_redirected, eps_prototypes = eps.split([batch] * 3 + [batch * concepts])
        distance += (eps_redirected - eps_null).flatten(1).norm(dim=1)
        safe = eps_cond - (eps_redirected - eps_null)
        direction = (eps_prototypes.unflatten(0, (concepts, batch)) - eps_null) / target_scale
        error = (wanted - safe).pow(2).sum(1)
        gain += (error - (wanted - safe - direction).pow(2).sum(2)).transpose(0, 1)
        scale += error.mean((1, 2))
    local = F.avg_pool2d(gain, window, stride=1).amax((2, 3))
    return distance / len(draws), local / scale[:, None]


def normalise_concepts(improvement: Tensor) -> Tensor:
    """Improvements (N, K) in units of each concept's own spread over the pool (median and quartiles).

    The lower half sets the spread: a pool's clean pairs lie there whatever its share of harmful ones. A
    concept that was never learned has next to none, so no spread counts below a fifth of the median one.
    """
    median = improvement.median(0).values
    spread = median - improvement.quantile(0.25, dim=0)
    return (improvement - median) / spread.clamp(min=max(1e-8, 0.2 * float(spread.median())))
