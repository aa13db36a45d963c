"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as time ids."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safetune.backbone.stable_diffusion import StableDiffusionBackbone
from safetune.conditioning import Conditioning


class StableDiffusionXLBackbone(StableDiffusionBackbone):
    """A loaded StableDiffusionXLPipeline, frozen; see Backbone for shapes.

    Embeddings are (B, L, D1 + D2), both encoders side by side; pooled (B, P) is the second encoder's.
    """

    family = "stable-diffusion-xl"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    prompts_at_once = 32

    def null(self, batch: int = 1) -> Conditioning:
        empty = super().null(batch)
        return empty.map(torch.zeros_like) if self.pipeline.config.force_zeros_for_empty_prompt else empty

    def encode_images(self, images: Tensor) -> Tensor:
        with full_precision(self._require("vae")):
            return super().encode_images(images)

    def decode(self, latents: Tensor) -> Tensor:
        with full_precision(self._require("vae")):
            return super().decode(latents)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        denoiser: nn.Module | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        if conditioning.pooled is None:
            raise ValueError("SDXL needs pooled embeddings: give a Conditioning with `pooled`")
        ids = size_ids(noisy, self.pipeline.vae_scale_factor) if time_ids is None else time_ids
        added = {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": ids.to(self.dtype)}
        output: Tensor = (self.denoiser if denoiser is None else denoiser)(
            noisy.to(self.dtype),
            timesteps,
            encoder_hidden_states=conditioning.embeds.to(self.dtype),
            added_cond_kwargs=added,
        ).sample
        return output

    def _tokenizers(self) -> list[tuple[Any, int]]:
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return [(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers]

    def _encode(self, prompts: list[str]) -> Conditioning:
        first, second = (
            getattr(self.pipeline, name)(self._tokenize(index, prompts), output_hidden_states=True)
            for index, name in enumerate(self.text_encoders)
        )
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Conditioning(embeds.to(self.pipeline.text_encoder_2.dtype), second.text_embeds)


def size_ids(latents: Tensor, scale: int) -> Tensor:
    """Original size, corner of the crop and target size (B, 6) of uncropped pictures, in pixels.

    What the pipeline passes by default (SDXL, arXiv 2307.01952, section 2.2); `scale` pixels per latent.
    """
    size = [latents.shape[2] * scale, latents.shape[3] * scale]
    return torch.tensor([[*size, 0, 0, *size]], device=latents.device).repeat(len(latents), 1)


@contextmanager
def full_precision(vae: Any) -> Iterator[None]:
    """SDXL's autoencoder overflows in fp16: in fp32 while it works, as the pipeline does it."""
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(torch.float16)
