"""Stable Diffusion 1.x: one CLIP text encoder, epsilon-predicting UNet."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from safetune import diffusion
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.conditioning import Conditioning


class StableDiffusionBackbone:
    """A loaded StableDiffusionPipeline, frozen; see Backbone for shapes."""

    family = "stable-diffusion"

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.unet
        self.dtype: torch.dtype = pipeline.unet.dtype
        self.fingerprint = weights_fingerprint(self.denoiser)
        self.alphas_cumprod: Tensor = pipeline.scheduler.alphas_cumprod
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        tokenizer, chunks = self.pipeline.tokenizer, []
        for start in range(0, len(prompts), 256):
            tokens = tokenizer(
                list(prompts[start : start + 256]),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(self.device)
            chunks.append(self.pipeline.text_encoder(tokens)[0])
        return Conditioning(torch.cat(chunks))

    def null(self) -> Conditioning:
        return self.encode_prompts([""])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        vae = self.pipeline.vae
        chunks = [
            vae.encode(chunk.to(self.device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor
            for chunk in images.split(64)
        ]
        return torch.cat(chunks)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        chunks = [
            vae.decode(chunk.to(vae.dtype) / vae.config.scaling_factor).sample for chunk in latents.split(64)
        ]
        return torch.cat(chunks).clamp(-1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return diffusion.add_noise(latents, noise, timesteps, self.alphas_cumprod)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=conditioning.embeds.to(self.dtype)
        ).sample
        return output
