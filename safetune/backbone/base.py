"""The interface that every model family offers to the method."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from safetune.backbone.predictions import PredictionType
from safetune.conditioning import Conditioning


class Backbone(Protocol):
    """A frozen text-to-image model: text encoders, autoencoder, noise schedule and denoiser.

    Timesteps are integers (B,) of the training schedule in every family, from 0 (almost clean) to 999 (almost
    or wholly noise). Flow matching reads them as rows of its scheduler's own table of sigmas.
    """

    family: str
    pipeline: DiffusionPipeline
    denoiser: nn.Module
    prediction_type: PredictionType
    """What `predict` returns: the noise, v, or the flow's velocity."""
    fingerprint: str
    """Hash of the denoiser's weights: an HGR belongs to one."""

    @property
    def alphas_cumprod(self) -> Tensor | None:
        """The schedule of epsilon- and v-predicting models; None for flow matching."""
        ...

    @property
    def device(self) -> torch.device: ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of N prompts, in chunks; N may be large. One warning counts the prompts cut short."""
        ...

    def null(self, batch: int = 1) -> Conditioning:
        """What the pipeline is guided away from when no negative prompt is given, `batch` equal rows.

        The empty prompt's conditioning; zeros for an SDXL that says force_zeros_for_empty_prompt.
        """
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w), the posterior's mean."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to pictures (B, 3, H, W) in [-1, 1]."""
        ...

    def free_encoders(self, keep_vae: bool = False) -> None:
        """Drop text encoders and autoencoder; encoding and decoding raise RuntimeError from then on.

        With `keep_vae` the autoencoder stays, on the CPU: encode_images and decode bring it to the denoiser's
        device for their call.
        """
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noised latents x_t (B, C, h, w)."""
        ...

    def true_output(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect denoiser would return for add_noise(latents, noise, timesteps)."""
        ...

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        denoiser: nn.Module | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """The denoiser's raw output (B, C, h, w); conditioning has B rows.

        `denoiser` takes the place of the backbone's own: a student as accelerate wrapped it. `time_ids` are
        SDXL's (B, 6): original height and width, top and left of the crop, height and width; by default those
        of uncropped pictures. Other families do not read them.
        """
        ...
