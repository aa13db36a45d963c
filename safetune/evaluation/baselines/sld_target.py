"""Safe Latent Diffusion as what is attacked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning
from safetune.diffusion import per_sample
from safetune.evaluation.baselines.sld import PRESETS, SldPreset, disable_sld, enable_sld, safety_direction

if TYPE_CHECKING:
    from safetune.evaluation.attacks.target import PipelineTarget


@dataclass(frozen=True)
class SldTarget:
    """A target (see safetune.evaluation.attacks.target.Target) whose pictures SLD guides."""

    plain: "PipelineTarget"
    """The weights, without guidance; SLD and another guidance together are not supported."""
    concept: Conditioning
    """The safety concept, one row."""
    preset: SldPreset = PRESETS["medium"]

    def __post_init__(self) -> None:
        if self.plain.negative is not None:
            raise ValueError("SLD and another guidance: give one of them")

    @property
    def backbone(self) -> Backbone:
        return self.plain.backbone

    @property
    def guidance_scale(self) -> float:
        return self.plain.guidance_scale

    @property
    def steps(self) -> int:
        return self.plain.steps

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Conditioning) -> Tensor:
        """See Target: eps(x,c) - gamma, by which plain CFG draws as SLD does, but for momentum.

        A single prediction has no steps before it, so there is no momentum. In the warm-up gamma is 0.
        """
        backbone, preset = self.backbone, self.preset
        output = backbone.predict(noisy, timesteps, prompts)
        null = backbone.predict(noisy, timesteps, backbone.null().expand(len(noisy)))
        safety = backbone.predict(noisy, timesteps, self.concept.expand(len(noisy)))
        gamma = safety_direction(null, output, safety, preset.guidance_scale, preset.threshold)
        active = timesteps < 1000 * (1 - preset.warmup_steps(self.steps) / self.steps)
        return output - per_sample(active.to(gamma), gamma) * gamma

    def draw(self, prompts: Conditioning, seeds: Sequence[int]) -> Tensor:
        pipeline = self.backbone.pipeline
        enable_sld(pipeline, self.concept.embeds, self.preset)
        try:
            return self.plain.draw(prompts, seeds)
        finally:
            disable_sld(pipeline)

    def stripped(self) -> "PipelineTarget":
        return self.plain

    def copied(self) -> "SldTarget":
        return replace(self, plain=self.plain.copied())


def sld_target(plain: "PipelineTarget", prompt: str, preset: SldPreset) -> SldTarget:
    """SLD by a safety concept in words; see concept_prompt for a list of them."""
    with torch.no_grad():
        return SldTarget(plain, plain.backbone.encode_prompts([prompt]), preset)
