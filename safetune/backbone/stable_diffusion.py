"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet that predicts epsilon or v."""

from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from safetune import diffusion
from safetune.backbone import predictions
from safetune.backbone.frozen import FrozenPipeline
from safetune.backbone.predictions import PredictionType
from safetune.conditioning import Conditioning


class StableDiffusionBackbone(FrozenPipeline):
    """A loaded StableDiffusionPipeline, frozen; see Backbone for shapes."""

    family = "stable-diffusion"

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        scheduler = pipeline.scheduler
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"{type(scheduler).__name__} has no alphas_cumprod; give the pipeline a scheduler of the "
                "DDPM kind: DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, ..."
            )
        self.prediction_type: PredictionType = check_prediction_type(scheduler.config.prediction_type)
        super().__init__(pipeline, pipeline.unet)
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return diffusion.add_noise(latents, noise, timesteps, self.alphas_cumprod)

    def true_output(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "v_prediction":
            return predictions.velocity(latents, noise, timesteps, self.alphas_cumprod)
        return noise

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        denoiser: nn.Module | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        output: Tensor = (self.denoiser if denoiser is None else denoiser)(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=conditioning.embeds.to(self.dtype)
        ).sample
        return output

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length)]

    def _encode(self, prompts: list[str]) -> Conditioning:
        return Conditioning(self.pipeline.text_encoder(self._tokenize(0, prompts))[0])


def check_prediction_type(name: str) -> PredictionType:
    """The scheduler's prediction type; ValueError for one that the method has no use for."""
    if name == "epsilon":
        return "epsilon"
    if name == "v_prediction":
        return "v_prediction"
    raise ValueError(f"the scheduler's prediction_type is {name!r}; supported: epsilon, v_prediction")
