"""Erased Stable Diffusion (Gandikota et al. 2023, arXiv 2303.07345): a denoiser trained to be guided away.

The student learns for a concept what the frozen model says away from it, on pictures half drawn by the
student itself. ESD-x trains cross-attention alone, ESD-u everything else.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat
from safetune.diffusion import cfg, mse_per_sample
from safetune.evaluation.baselines.layers import split_parameters
from safetune.evaluation.baselines.training_state import load_state, save_state
from safetune.files import fingerprint_of

Variant = Literal["esd-x", "esd-u"]
SAVE_EVERY = 50
"""Steps between saved states."""


@dataclass(frozen=True)
class EsdSettings:
    """How ESD trains; the defaults are the paper's, for Stable Diffusion."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 1
    """Concepts of a step, drawn in one partial loop."""
    lr: float = 1e-5
    """Rate of Adam."""
    negative_guidance: float = 1.0
    """Eta: how far the target lies on the other side of the unconditional prediction."""
    sampler_steps: int = 50
    """DDIM steps of a whole picture; a step of training stops after some of them."""
    guidance_scale: float = 3.0
    """Of the partial loop, which draws the concept."""
    templates: tuple[str, ...] = ("{}",)
    """Prompts that stand for a concept; {} is its name."""

    def __post_init__(self) -> None:
        """ValueError for numbers that make no training."""
        if min(self.steps, self.batch_size, self.sampler_steps) < 1 or self.lr <= 0:
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size}, sampler_steps {self.sampler_steps}, lr "
                f"{self.lr}: give 1 or more, and a rate above 0"
            )
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ValueError(f"templates {self.templates}: give one or more, each with {{}} for the name")


TINYSD_ESD: dict[Variant, EsdSettings] = {
    "esd-x": EsdSettings(steps=100, batch_size=8, lr=3e-4, sampler_steps=10),
    "esd-u": EsdSettings(steps=100, batch_size=8, lr=5e-5, sampler_steps=10),
}
"""A small denoiser takes larger steps, and its pictures are drawn in ten. At 1e-3 ESD-x lost the safe objects
too; ESD-u lost some of them at 1e-4 and at 5e-5."""


def esd_target(eps_null: Tensor, eps_concept: Tensor, negative_guidance: float) -> Tensor:
    """eps(x,null) - eta (eps(x,c) - eps(x,null)), both of the frozen model, (B, C, h, w)."""
    return eps_null - negative_guidance * (eps_concept - eps_null)


def esd_loss(student: Tensor, eps_null: Tensor, eps_concept: Tensor, negative_guidance: float) -> Tensor:
    """Mean squared error (B,) of the student's eps(x,c) to esd_target."""
    return mse_per_sample(student, esd_target(eps_null, eps_concept, negative_guidance))


def trained_parameters(denoiser: nn.Module, variant: Variant) -> dict[str, nn.Parameter]:
    """Parameters by name that a variant trains: of cross-attention for esd-x, all others for esd-u."""
    inside, outside = split_parameters(denoiser)
    return inside if variant == "esd-x" else outside


def train_esd(
    backbone: Backbone,
    concepts: Sequence[str],
    variant: Variant,
    settings: EsdSettings,
    seed: int = 0,
    state: Path | None = None,
    stop_after: int | None = None,
) -> list[float]:
    """Train the backbone's denoiser in place; returns the loss of each step done here.

    A frozen copy of the denoiser is held beside it. Concepts come in turn, in an order drawn anew for each
    round. `state` is a file that training goes on from, and that is written every SAVE_EVERY steps: a resumed
    run ends with the same bits, for a step's draws depend on seed and number alone. `stop_after` ends after
    so many steps in all. Raises ValueError for no concept, a model without noise schedule, a denoiser without
    cross-attention, and a state of other settings.
    """
    if not concepts:
        raise ValueError("no concept to erase: give one or more")
    if backbone.alphas_cumprod is None:
        raise ValueError(
            "ESD is for models that predict noise or v (Stable Diffusion 1.x, 2.x, XL), not flow"
        )
    student = backbone.denoiser
    teacher = copy.deepcopy(student)
    trained = trained_parameters(student, variant)
    optimizer = torch.optim.Adam(trained.values(), lr=settings.lr)
    prompts = backbone.encode_prompts(
        [template.format(name) for name in concepts for template in settings.templates]
    )
    null = backbone.null()
    key = fingerprint_of(
        [backbone.fingerprint, variant, asdict(settings), seed, list(concepts), list(trained)]
    )
    first = 0 if state is None else load_state(state, key, trained, optimizer)
    last = settings.steps if stop_after is None else min(stop_after, settings.steps)
    losses = []
    for parameter in trained.values():
        parameter.requires_grad_(True)
    for step in tqdm(range(first, last), initial=first, total=last, desc=variant, unit="step"):
        rows = prompts.select(torch.from_numpy(drawn_rows(len(prompts), settings.batch_size, step, seed)))
        noisy, timestep = half_drawn(backbone, rows, null, settings, step, seed)
        timesteps = timestep.expand(len(noisy))
        with torch.no_grad():
            twice = backbone.predict(
                noisy.repeat(2, 1, 1, 1),
                timesteps.repeat(2),
                cat([null.expand(len(rows)), rows]),
                denoiser=teacher,
            )
        output = backbone.predict(noisy, timesteps, rows)
        eps_null, eps_concept = twice.chunk(2)
        loss = esd_loss(output, eps_null, eps_concept, settings.negative_guidance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if state is not None and (step + 1) % SAVE_EVERY == 0:
            save_state(state, key, step + 1, trained, optimizer)
    student.requires_grad_(False)
    return losses


def drawn_rows(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Rows (batch_size,) of a step: every row once in each round, in an order of the round's own."""
    places = range(step * batch_size, (step + 1) * batch_size)
    rounds = {place // count for place in places}
    orders = {number: np.random.default_rng([seed, 1, number]).permutation(count) for number in rounds}
    return np.array([orders[place // count][place % count] for place in places])


@torch.no_grad()
def half_drawn(
    backbone: Backbone, prompts: Conditioning, null: Conditioning, settings: EsdSettings, step: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Latents x_t (B, C, h, w) of a partial loop by CFG from noise, and their timestep (), the step's own."""
    rng = np.random.default_rng([seed, 2, step])
    scheduler = DDIMScheduler.from_config(backbone.pipeline.scheduler.config)
    scheduler.set_timesteps(settings.sampler_steps)
    stop = int(rng.integers(settings.sampler_steps))
    config: Any = backbone.denoiser.config
    shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    noisy = noise.to(backbone.device)
    both = cat([null.expand(len(prompts)), prompts])
    for timestep in scheduler.timesteps[:stop]:
        output = backbone.predict(noisy.repeat(2, 1, 1, 1), timestep.expand(len(both)).to(noisy.device), both)
        eps_null, eps_concept = output.chunk(2)
        guided = cfg(eps_null, eps_concept, settings.guidance_scale)
        noisy = scheduler.step(guided, timestep, noisy).prev_sample
    return noisy, scheduler.timesteps[stop].to(noisy.device)
