"""What a denoiser predicts, and what a perfect one would return: pure functions.

Shapes: latents and noise (B, C, h, w), timesteps (B,) integers of the training schedule.
"""

from typing import Literal

from torch import Tensor

from safetune.diffusion import per_sample

PredictionType = Literal["epsilon", "v_prediction", "flow"]


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The velocity v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (arXiv 2202.00512, section 4)."""
    alpha = per_sample(alphas_cumprod.to(latents.device)[timesteps], latents).to(latents.dtype)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def add_flow_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, sigmas: Tensor) -> Tensor:
    """Straight path x_t = (1 - s_t) x_0 + s_t noise (rectified flow, arXiv 2403.03206, equation 13)."""
    sigma = per_sample(sigmas.to(latents.device)[timesteps], latents).to(latents.dtype)
    return (1 - sigma) * latents + sigma * noise


def flow_velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Derivative of the straight path by s_t: noise - x_0 at every timestep."""
    return noise - latents
