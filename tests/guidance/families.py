"""Small models of each family, their redirectors, and SafeCFG written out by hand."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from torch import Tensor

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.conditioning import Conditioning
from safetune.hgr import HGR

PROMPTS = ["a cat with a knife in its hand in the forest", "a dog in the city", "a fox"]
STEPS, SCALE = 3, 5.0

TASKS: dict[str, dict[str, type[DiffusionPipeline]]] = {
    "sd1": {"img2img": StableDiffusionImg2ImgPipeline, "inpaint": StableDiffusionInpaintPipeline},
    "sd2": {"img2img": StableDiffusionImg2ImgPipeline, "inpaint": StableDiffusionInpaintPipeline},
    "sdxl": {"img2img": StableDiffusionXLImg2ImgPipeline, "inpaint": StableDiffusionXLInpaintPipeline},
    "sd3": {"img2img": StableDiffusion3Img2ImgPipeline, "inpaint": StableDiffusion3InpaintPipeline},
}


@dataclass
class Family:
    """In float64 unless told: random weights blow rounding up, and only the formula is to be compared."""

    name: str
    folder: Path
    dtype: torch.dtype = torch.float64
    backbone: Backbone = field(init=False)
    hgr: HGR = field(init=False)

    def __post_init__(self) -> None:
        self.backbone = copy.deepcopy(loaded(self.folder, self.dtype))
        self.hgr = build_hgr(self.backbone)

    @property
    def pipeline(self) -> DiffusionPipeline:
        return self.backbone.pipeline

    def task(self, name: str) -> DiffusionPipeline:
        """An img2img or inpainting pipeline of the same components."""
        extra = {"requires_safety_checker": False} if self.name in ("sd1", "sd2") else {}
        pipeline = TASKS[self.name][name](**self.pipeline.components, **extra)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@functools.cache
def loaded(folder: Path, dtype: torch.dtype) -> Backbone:
    """Read once; tests change a copy."""
    return load_backbone(folder, dtype=dtype)


def build_hgr(backbone: Backbone, trained: bool = True) -> HGR:
    """A redirector of the family's widths that names its base; random where it counts as trained."""
    torch.manual_seed(0)
    prompt = backbone.encode_prompts(["a cat"])
    hgr = HGR(
        prompt.embeds.shape[2],
        prompt.embeds.shape[1],
        width=16,
        layers=1,
        heads=2,
        pooled_width=0 if prompt.pooled is None else prompt.pooled.shape[1],
        base_fingerprint=backbone.fingerprint,
    ).eval()
    if trained:
        torch.nn.init.normal_(hgr.project_out.weight, std=0.5)
        if hgr.project_pooled is not None:
            torch.nn.init.normal_(hgr.project_pooled.weight, std=2.0)
    return hgr


def widen_latents(family: Family) -> None:
    """Give an SD 3 the 16 latent channels that its inpainting pipeline insists on."""
    torch.manual_seed(0)
    wide = {"in_channels": 16, "out_channels": 16}
    transformer = SD3Transformer2DModel.from_config({**family.pipeline.transformer.config, **wide})
    vae = AutoencoderKL.from_config({**family.pipeline.vae.config, "latent_channels": 16})
    family.pipeline.register_modules(transformer=transformer.double(), vae=vae.double())
    family.hgr.base_fingerprint = weights_fingerprint(transformer)


def noise(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Latents (count, 4, 8, 8), a quarter of the usual; each row depends on its number only."""
    rows = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(row)) for row in range(count)]
    return torch.stack(rows).to(dtype)


def draw(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] = PROMPTS,
    latents: Tensor | None = None,
    **options: object,
) -> Tensor:
    """Latents that the pipeline makes of the prompts."""
    start = noise(len(prompts), next(pipeline.vae.parameters()).dtype) if latents is None else latents
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent", **options}
    return pipeline(list(prompts), latents=start.clone(), **settings).images


@torch.no_grad()
def redirected(
    family: Family,
    prompts: Sequence[str] = PROMPTS,
    strength: float = 1.0,
    negative: Conditioning | None = None,
) -> Conditioning:
    """The negative, empty unless given, plus the redirector's output."""
    away = family.backbone.null(len(prompts)) if negative is None else negative
    delta, pooled = family.hgr(family.backbone.encode_prompts(prompts).embeds)
    if away.pooled is None:
        return Conditioning(away.embeds + strength * delta)
    return Conditioning(away.embeds + strength * delta, away.pooled + strength * pooled)


def as_arguments(negative: Conditioning) -> dict[str, Tensor]:
    """What a plain pipeline is given to be guided away from it."""
    arguments = {"negative_prompt_embeds": negative.embeds}
    if negative.pooled is not None:
        arguments["negative_pooled_prompt_embeds"] = negative.pooled
    return arguments


@torch.no_grad()
def draw_by_hand(
    family: Family,
    negatives: Sequence[Conditioning],
    prompts: Sequence[str] = PROMPTS,
    pixels: int = 64,
) -> Tensor:
    """Guidance written out, each branch in a pass of its own; one negative for each step.

    Classic pipelines tell an SDXL that it draws 64 pixels a side whatever latents they are given.
    """
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(len(negatives))
    positive = family.backbone.encode_prompts(prompts)
    latents = noise(len(prompts), family.dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t, negative in zip(scheduler.timesteps, negatives, strict=True):
        scaled = scheduler.scale_model_input(latents, t) if family.name != "sd3" else latents
        away, towards = (
            predict(family, scaled, t, conditioning, pixels) for conditioning in (negative, positive)
        )
        latents = scheduler.step(away + SCALE * (towards - away), t, latents).prev_sample
    return latents


def predict(family: Family, latents: Tensor, t: Tensor, conditioning: Conditioning, pixels: int) -> Tensor:
    """One pass of the denoiser, called as its own signature says."""
    rows, embeds = len(latents), conditioning.embeds
    if family.name == "sd3":
        return family.pipeline.transformer(
            hidden_states=latents,
            timestep=t.expand(rows),
            encoder_hidden_states=embeds,
            pooled_projections=conditioning.pooled,
        ).sample
    added = None
    if family.name == "sdxl":
        sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], dtype=family.dtype).repeat(rows, 1)
        added = {"text_embeds": conditioning.pooled, "time_ids": sizes}
    return family.pipeline.unet(latents, t, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
