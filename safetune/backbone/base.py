"""The interface that every model family offers to the method."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from safetune.conditioning import Conditioning


class Backbone(Protocol):
    """A frozen text-to-image model: text encoder, autoencoder, noise schedule and denoiser."""

    family: str
    pipeline: DiffusionPipeline
    denoiser: nn.Module
    alphas_cumprod: Tensor
    fingerprint: str
    """Hash of the denoiser's weights: an HGR belongs to one."""

    @property
    def device(self) -> torch.device: ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of N prompts, in chunks; N may be large."""
        ...

    def null(self) -> Conditioning:
        """The empty prompt's conditioning, one row."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w), the posterior's mean."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to pictures (B, 3, H, W) in [-1, 1]."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noised latents x_t; timesteps (B,) integers of the training schedule."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's raw output (B, C, h, w); conditioning has B rows."""
        ...
