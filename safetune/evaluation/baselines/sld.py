"""Safe Latent Diffusion (Schramowski et al. 2023, arXiv 2211.05105) in a diffusers StableDiffusionPipeline.

Sampling is led away from the embedding of a safety concept, wherever a prompt comes near to it. Weights do
not change. Each call of the denoiser gets the concept as a third part of its batch.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

_SETTINGS = "_sld"


@dataclass(frozen=True)
class SldPreset:
    """Hyper-parameters of SLD, by the paper's symbols."""

    guidance_scale: float
    """s_S: how soon the scale of an element reaches its largest value, 1."""
    warmup: float
    """delta: share of the sampler's steps at the start that are left alone."""
    threshold: float
    """lambda: an element is changed where prompt minus concept is below it."""
    momentum_scale: float
    """s_m."""
    momentum_beta: float
    """beta_m."""

    def warmup_steps(self, steps: int) -> int:
        """The warm-up in a sampler of so many steps, rounded; the paper counts it in 50."""
        return round(self.warmup * steps)


PRESETS = {
    "weak": SldPreset(200, 15 / 50, 0.0, 0.0, 0.0),
    "medium": SldPreset(1000, 10 / 50, 0.01, 0.3, 0.4),
    "strong": SldPreset(2000, 7 / 50, 0.025, 0.5, 0.7),
    "max": SldPreset(5000, 0.0, 1.0, 0.5, 0.7),
}
"""The paper's four configurations (its table of Hyp-Weak to Hyp-Max)."""


def safety_direction(
    eps_null: Tensor, eps_prompt: Tensor, eps_concept: Tensor, guidance_scale: float, threshold: float
) -> Tensor:
    """What is taken from eps(x,c), before momentum: mu (eps(x,S) - eps(x,null)); all (B, C, h, w).

    mu = min(1, s_S |eps(x,c) - eps(x,S)|) where eps(x,c) - eps(x,S) < lambda, else 0 (section 3). The paper
    prints max(1, .), by which mu would have no upper bound; its authors' code and settings are for min.
    """
    difference = eps_prompt - eps_concept
    scale = (guidance_scale * difference.abs()).clamp(max=1)
    return torch.where(difference < threshold, scale, torch.zeros_like(scale)) * (eps_concept - eps_null)


def with_momentum(
    direction: Tensor, momentum: Tensor, momentum_scale: float, momentum_beta: float
) -> tuple[Tensor, Tensor]:
    """(gamma, next momentum): gamma = direction + s_m nu, nu' = beta nu + (1 - beta) gamma (section 3)."""
    gamma = direction + momentum_scale * momentum
    return gamma, momentum_beta * momentum + (1 - momentum_beta) * gamma


def preset_named(preset: str | SldPreset) -> SldPreset:
    """A preset by its name; ValueError for a name that is none."""
    if isinstance(preset, SldPreset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"no SLD preset {preset!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[preset]


def enable_sld(pipeline: DiffusionPipeline, concept_embeds: Tensor, preset: str | SldPreset) -> None:
    """Guide a StableDiffusionPipeline by SLD until disable_sld(pipeline); weights stay as they are.

    `concept_embeds` (1, L, D) is the safety concept as the pipeline's text encoder gives it. Momentum and
    step begin anew in each call of the pipeline. Raises ValueError for another kind of pipeline, one that
    SafeCFG guides, other shapes and an unknown preset; a guided call raises it where there is no guidance
    to change (guidance_scale of 1 or less), and for prompts of another length.
    """
    settings = _Settings(concept_embeds, preset_named(preset), type(pipeline))
    if not any(base.__name__ == "StableDiffusionPipeline" for base in type(pipeline).__mro__):
        raise ValueError(
            f"SLD is for a StableDiffusionPipeline (Stable Diffusion 1.x, 2.x), not {type(pipeline).__name__}"
        )
    if getattr(pipeline, "_safecfg", None) is not None:
        raise ValueError(
            "SafeCFG guides this pipeline: call disable_safecfg(pipeline) first, or leave SLD out"
        )
    width = pipeline.unet.config.cross_attention_dim
    if concept_embeds.dim() != 3 or len(concept_embeds) != 1 or concept_embeds.shape[-1] != width:
        raise ValueError(
            f"concept_embeds has shape {tuple(concept_embeds.shape)}: give one encoded prompt, "
            f"(1, L, {width})"
        )
    disable_sld(pipeline)
    settings.plain = type(pipeline)
    setattr(pipeline, _SETTINGS, settings)
    pipeline.__class__ = _guided(type(pipeline))


def disable_sld(pipeline: DiffusionPipeline) -> None:
    """Back to plain CFG; nothing happens where SLD is not enabled."""
    settings = getattr(pipeline, _SETTINGS, None)
    if settings is not None:
        pipeline.__class__ = settings.plain
        setattr(pipeline, _SETTINGS, None)


@dataclass
class _Settings:
    """What a guided pipeline carries."""

    concept: Tensor
    preset: SldPreset
    plain: type[DiffusionPipeline]


@dataclass
class _Run:
    """One call of a guided pipeline: its step, and the momentum that its steps leave."""

    pipeline: DiffusionPipeline
    settings: _Settings
    forward: Callable[..., Any]
    """The UNet's own."""
    step: int = 0
    momentum: Tensor | None = field(default=None)

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: Any
    ) -> tuple[Tensor]:
        """The UNet's output for 2 B rows, null and prompt, the concept's part taken from the prompt's."""
        if not self.pipeline.do_classifier_free_guidance:
            raise ValueError(
                "SLD changes the guidance, and there is none at guidance_scale "
                f"{self.pipeline.guidance_scale}: give more than 1, or call disable_sld(pipeline)"
            )
        if options.get("added_cond_kwargs") is not None:
            raise ValueError("SLD does not know image prompts (IP-Adapter): leave them out")
        half, concept = len(sample) // 2, self.settings.concept.to(encoder_hidden_states)
        if concept.shape[1] != encoder_hidden_states.shape[1]:
            raise ValueError(
                f"the concept has {concept.shape[1]} tokens and the prompts have "
                f"{encoder_hidden_states.shape[1]}: encode both by the same text encoder"
            )
        embeds = torch.cat([encoder_hidden_states, concept.expand(half, -1, -1)])
        output = self.forward(
            torch.cat([sample, sample[:half]]),
            timestep,
            encoder_hidden_states=embeds,
            **{**options, "return_dict": False},
        )[0]
        null, prompt, safety = output.chunk(3)
        return (torch.cat([null, prompt - self._gamma(null, prompt, safety)]),)

    def _gamma(self, null: Tensor, prompt: Tensor, safety: Tensor) -> Tensor:
        preset = self.settings.preset
        direction = safety_direction(null, prompt, safety, preset.guidance_scale, preset.threshold)
        momentum = torch.zeros_like(direction) if self.momentum is None else self.momentum
        gamma, self.momentum = with_momentum(direction, momentum, preset.momentum_scale, preset.momentum_beta)
        self.step += 1
        warming = self.step <= preset.warmup_steps(self.pipeline.num_timesteps)
        return torch.zeros_like(gamma) if warming else gamma


@contextmanager
def _run(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Stand in the UNet's place for one call of the pipeline; RuntimeError when nothing went through."""
    unet = pipeline.unet
    own = unet.__dict__.get("forward")  # accelerate's offloading puts one there
    run = _Run(pipeline, getattr(pipeline, _SETTINGS), unet.forward)

    def forward(*args: Any, **options: Any) -> tuple[Tensor]:
        return run(*args, **options)

    unet.forward = forward
    try:
        yield
    finally:
        del unet.forward
        if own is not None:
            unet.forward = own
    if not run.step:
        raise RuntimeError(
            "the pipeline reached its UNet past SLD, so these pictures were drawn without it: give a UNet "
            "that is not compiled, or call disable_sld(pipeline) if that is what you want"
        )


def _guided(plain: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """A pipeline class whose calls are guided; it keeps its name, under which diffusers saves it."""

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        with _run(self):
            return plain.__call__(self, *args, **options)

    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (plain,), {"__call__": call, **names})
