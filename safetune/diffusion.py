"""Pure functions of diffusion and of SafeCFG; eps stands for the denoiser's raw output (epsilon, v or flow).

Shapes: latents and eps (B, C, h, w), timesteps and per-pair scalars (B,). Every formula is linear in eps.
"""

import torch
from torch import Tensor
from torch.nn import functional


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Forward diffusion x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise (DDPM, arXiv 2006.11239, eq. 4)."""
    alpha = per_sample(alphas_cumprod.to(latents.device)[timesteps], latents).to(latents.dtype)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def cfg(eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance in diffusers' convention; SafeCFG has eps(x, HGR(c)) for uncond."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def redirect_target(
    eps_null: Tensor, eps_cond: Tensor, eps_safe: Tensor, guidance_scale: float, strength: float = 1.0
) -> Tensor:
    """The output that HGR(c) must cause so that SafeCFG on c equals plain CFG on the safe rewriting s(c).

    eps(x,null) + strength * w/(w-1) * (eps(x,c) - eps(x,s(c))); at strength 1 the equality is exact.
    Raises ValueError at guidance_scale 1, where the unconditional branch has no weight.
    """
    if guidance_scale <= 1:
        raise ValueError(
            f"guidance_scale {guidance_scale}: there is no guidance to redirect; give more than 1"
        )
    return eps_null + strength * guidance_scale / (guidance_scale - 1) * (eps_cond - eps_safe)


def safe_target(
    eps_cond: Tensor, eps_redirected: Tensor, eps_null: Tensor, harm: Tensor, eta: float
) -> Tensor:
    """Student target eps(x,c) - h eta (eps(x,HGR(c)) - eps(x,null)); harm h (B,) in [0, 1].

    With h = 1 and eta = (w-1)/w, plain CFG on the student equals SafeCFG on the base.
    """
    return eps_cond - per_sample(harm * eta, eps_cond) * (eps_redirected - eps_null)


def signal_weight(timesteps: Tensor, alphas_cumprod: Tensor | None, cap: float) -> Tensor:
    """Loss weight 1 / a_t (B,), at most `cap`; ones for flow matching, which has no alphas.

    What a prompt changes in the output shrinks with the signal a_t, so that without a weight the noisy
    timesteps, where a picture's content is decided, would count for nothing.
    """
    if alphas_cumprod is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    return (1 / alphas_cumprod.to(timesteps.device)[timesteps]).clamp(max=cap)


def min_snr_weight(
    timesteps: Tensor, alphas_cumprod: Tensor, gamma: float, predicts_velocity: bool = False
) -> Tensor:
    """Loss weight min(SNR, gamma) / SNR (B,), by SNR + 1 for v-prediction (min-SNR, arXiv 2303.09556)."""
    alpha = alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr + 1 if predicts_velocity else snr)


def mse_per_sample(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error (B,), in fp32."""
    return (predicted.float() - target.float()).pow(2).flatten(1).mean(1)


def mse_along(predicted: Tensor, target: Tensor, direction: Tensor) -> Tensor:
    """The part of mse_per_sample (B,) that lies along `direction` (B, C, h, w); 0 where that is zero."""
    error, direction = (predicted.float() - target.float()).flatten(1), direction.float().flatten(1)
    along = (error * direction).sum(1).pow(2) / direction.pow(2).sum(1).clamp(min=1e-12)
    return along / error.shape[1]


def coarse(maps: Tensor, cells: int = 4) -> Tensor:
    """What maps (B, C, h, w) keep on a grid of cells x cells means: large areas, their colours above all."""
    means = functional.adaptive_avg_pool2d(maps.float(), cells)
    return functional.interpolate(means, size=maps.shape[-2:], mode="nearest")


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View values (B,) as (B, 1, ..., 1), so that they scale a batch shaped like `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def seeded_noise(shape: tuple[int, ...], seeds: list[int]) -> Tensor:
    """Standard normal (len(seeds), *shape), row i from its own seed alone, whatever the batch around it."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)
