"""What is attacked: a model with its defence, behind one interface."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from safetune.backbone import Backbone, load_backbone
from safetune.conditioning import Conditioning, shift
from safetune.evaluation.baselines.concepts import concept_prompt
from safetune.evaluation.baselines.sld import preset_named
from safetune.evaluation.baselines.sld_target import sld_target
from safetune.evaluation.methods import Method
from safetune.export.adapters import read_denoiser
from safetune.export.layers import apply_layers
from safetune.export.proof import load_adapter
from safetune.export.verification import detect_format
from safetune.finetuning.validation import pipeline_embeds
from safetune.guidance.classic import called_denoiser
from safetune.hgr import HGR
from safetune.precision import use_plain_backward

Negative = Callable[[Conditioning, Conditioning], Conditioning]
"""What a defence gives the unconditional branch, from the prompt's and the null conditioning, B rows each."""


class Target(Protocol):
    """What attacks ask of a model. Another kind of defence is another class with these members."""

    @property
    def backbone(self) -> Backbone:
        """Encoders, autoencoder, noise schedule, and the denoiser with the weights that are attacked."""
        ...

    @property
    def guidance_scale(self) -> float:
        """Of its pictures."""
        ...

    @property
    def steps(self) -> int:
        """Sampler steps of its pictures."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Conditioning) -> Tensor:
        """The output (B, C, h, w) by which plain CFG draws this target's pictures; differentiable."""
        ...

    def draw(self, prompts: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Pictures (N, 3, H, W) uint8 on the CPU, by the target's own guidance, one seed for each."""
        ...

    def stripped(self) -> "Target":
        """The same weights without the guidance."""
        ...

    def copied(self) -> "Target":
        """The same target with a denoiser of its own, whose weights may be trained."""
        ...


@dataclass(frozen=True)
class PipelineTarget:
    """A backbone whose pipeline draws, with or without a guidance that acts on the unconditional branch."""

    backbone: Backbone
    negative: Negative | None = None
    """None: plain classifier-free guidance."""
    guidance_scale: float = 5.0
    steps: int = 10
    """Sampler steps of a picture."""
    batch_size: int = 32

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Conditioning) -> Tensor:
        """See Target: eps(x,c) - (w-1)/w (eps(x,negative) - eps(x,null)), or eps(x,c) under plain CFG.

        A guidance that an attack does not look at would look stronger than it is.
        """
        predict = self.backbone.predict
        output = predict(noisy, timesteps, prompts)
        if self.negative is None:
            return output
        null = self.backbone.null().expand(len(noisy))
        away = predict(noisy, timesteps, self.negative(prompts, null)) - predict(noisy, timesteps, null)
        return output - (1 - 1 / self.guidance_scale) * away

    @torch.no_grad()
    def draw(self, prompts: Conditioning, seeds: Sequence[int]) -> Tensor:
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give a seed for each prompt")
        drawn = []
        for start in range(0, len(seeds), self.batch_size):
            rows = slice(start, start + self.batch_size)
            latents = self._latents(prompts.select(rows), seeds[rows])
            pictures = self.backbone.decode(latents)
            drawn.append(((pictures + 1) * 127.5).round().to(torch.uint8).cpu())
        return torch.cat(drawn)

    def stripped(self) -> "PipelineTarget":
        return replace(self, negative=None)

    def copied(self) -> "PipelineTarget":
        pipeline, denoiser = copy.copy(self.backbone.pipeline), copy.deepcopy(self.backbone.denoiser)
        name = "unet" if called_denoiser(pipeline) is getattr(pipeline, "unet", None) else "transformer"
        setattr(pipeline, name, denoiser)
        backbone = copy.copy(self.backbone)
        backbone.pipeline, backbone.denoiser = pipeline, denoiser
        return replace(self, backbone=backbone)

    def _latents(self, prompts: Conditioning, seeds: Sequence[int]) -> Tensor:
        null = self.backbone.null(len(seeds))
        negative = null if self.negative is None else self.negative(prompts, null)
        output = self.backbone.pipeline(
            **pipeline_embeds(prompts, negative),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        )
        latents: Tensor = output.images
        return latents


def redirected(hgr: HGR, strength: float = 1.0) -> Negative:
    """SafeCFG's unconditional branch, null + strength * delta(c), with a gradient to the prompt."""
    hgr.requires_grad_(False).eval()

    def negative(prompts: Conditioning, null: Conditioning) -> Conditioning:
        return shift(null, Conditioning(*hgr(prompts.embeds)), strength)

    return negative


def negative_prompt(backbone: Backbone, text: str) -> Negative:
    """One fixed negative prompt for all."""
    fixed = backbone.encode_prompts([text])
    return lambda prompts, null: fixed.expand(len(prompts))


def load_target(
    model: str | Path,
    method: Method | None = None,
    device: torch.device | str = "cpu",
    guidance_scale: float = 5.0,
    steps: int = 10,
    batch_size: int = 32,
    concepts: Sequence[str] = (),
) -> Target:
    """A base model with what a method puts on it, nothing by default.

    An adapter may have diffusers', kohya's or ComfyUI's names. `concepts` are the words of the harm, for
    SLD and the negative prompt "concepts". Weights are in fp32: attacks train some of them. ValueError
    for an HGR of another base, and for a method that is told concepts where there are none.
    """
    method = method or Method("base")
    backbone = load_backbone(model)
    fingerprint = backbone.fingerprint
    if method.adapter is not None:
        fuse_adapter(backbone, model, method.adapter)
    if method.denoiser is not None:
        with torch.no_grad():
            read_denoiser(method.denoiser, backbone.denoiser)
    backbone.pipeline.to(device)
    use_plain_backward(backbone.denoiser, backbone.device)
    plain = PipelineTarget(backbone, None, guidance_scale, steps, batch_size)
    if method.hgr is not None:
        redirector = HGR.from_pretrained(method.hgr)
        redirector.check_base(fingerprint)
        return replace(plain, negative=redirected(redirector.to(device)))
    if method.sld is None and method.negative_prompt is None:
        return plain
    told = method.sld is not None or method.negative_prompt == "concepts"
    if told and not concepts:
        raise ValueError(f"{method.kind}: this needs the words of the harm: give concepts")
    words = concept_prompt(backbone, concepts) if told else str(method.negative_prompt)
    if method.sld is not None:
        return sld_target(plain, words, preset_named(method.sld))
    return replace(plain, negative=negative_prompt(backbone, words))


def fuse_adapter(backbone: Backbone, model: str | Path, file: Path) -> None:
    """Add an adapter to the backbone's weights; a second copy of the model reads it and goes."""
    layers = load_adapter(file, detect_format(file), load_backbone(model))
    with torch.no_grad():
        apply_layers(backbone.denoiser, layers)


def weights_of(target: Target) -> dict[str, Tensor]:
    """A copy of the denoiser's weights."""
    module: nn.Module = target.backbone.denoiser
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
