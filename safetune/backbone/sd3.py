"""Stable Diffusion 3 and 3.5: flow matching, an MMDiT, two CLIP text encoders and a T5 that may be absent."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from safetune.backbone import predictions
from safetune.backbone.frozen import FrozenPipeline
from safetune.backbone.predictions import PredictionType
from safetune.conditioning import Conditioning

T5_TOKENS = 256
"""Tokens that T5 reads: the pipeline's default max_sequence_length."""


class StableDiffusion3Backbone(FrozenPipeline):
    """A loaded StableDiffusion3Pipeline, frozen; see Backbone for shapes.

    Embeddings are (B, L + 256, D): both CLIP encoders side by side and filled up with zeros, then T5 (zeros
    when the pipeline has none). Pooled (B, P) is both CLIP encoders'. Timestep t is row t of the scheduler's
    table, noise growing: sigma_t = shift s / (1 + (shift - 1) s) with s = (t + 1) / 1000.
    """

    family = "stable-diffusion-3"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    prompts_at_once = 32
    prediction_type: PredictionType = "flow"
    alphas_cumprod = None

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        if "shift" not in pipeline.scheduler.config:
            raise ValueError(
                f"{type(pipeline.scheduler).__name__} has no table of shifted sigmas; give the pipeline a "
                "FlowMatchEulerDiscreteScheduler"
            )
        super().__init__(pipeline, pipeline.transformer)
        # A new scheduler: the pipeline's own table is replaced whenever it samples.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        self.sigmas: Tensor = scheduler.sigmas.flip(0)
        self.scaled_sigmas: Tensor = scheduler.timesteps.flip(0)
        self.width: int = pipeline.transformer.config.joint_attention_dim
        self.has_t5 = pipeline.text_encoder_3 is not None
        if self.has_t5:
            self.text_encoders = (*self.text_encoders, "text_encoder_3")

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return predictions.add_flow_noise(latents, noise, timesteps, self.sigmas)

    def true_output(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return predictions.flow_velocity(latents, noise)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        denoiser: nn.Module | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        if conditioning.pooled is None:
            raise ValueError("Stable Diffusion 3 needs pooled embeddings: give a Conditioning with `pooled`")
        output: Tensor = (self.denoiser if denoiser is None else denoiser)(
            hidden_states=noisy.to(self.dtype),
            timestep=self.scaled_sigmas.to(noisy.device)[timesteps],
            encoder_hidden_states=conditioning.embeds.to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
        ).sample
        return output

    def _tokenizers(self) -> list[tuple[Any, int]]:
        pipeline = self.pipeline
        limit = pipeline.tokenizer_max_length
        clip = [(pipeline.tokenizer, limit), (pipeline.tokenizer_2, limit)]
        return [*clip, (pipeline.tokenizer_3, T5_TOKENS)] if self.has_t5 else clip

    def _encode(self, prompts: list[str]) -> Conditioning:
        pipeline = self.pipeline
        first, second = (
            encoder(self._tokenize(index, prompts), output_hidden_states=True)
            for index, encoder in enumerate((pipeline.text_encoder, pipeline.text_encoder_2))
        )
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        clip = F.pad(clip.to(pipeline.text_encoder.dtype), (0, self.width - clip.shape[-1]))
        if self.has_t5:
            t5 = pipeline.text_encoder_3(self._tokenize(2, prompts))[0]
        else:
            t5 = clip.new_zeros(len(prompts), T5_TOKENS, self.width)
        return Conditioning(
            torch.cat([clip, t5], dim=1), torch.cat([first.text_embeds, second.text_embeds], dim=1)
        )
