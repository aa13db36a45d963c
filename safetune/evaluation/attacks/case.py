"""What a target is attacked with: prompts, harmful pictures, and what an attacker may train on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.evaluation.attacks.inversion import Concept
from safetune.evaluation.attacks.report import Judge
from safetune.evaluation.attacks.target import Target


@dataclass(frozen=True)
class TrainingPictures:
    """Pictures to fine-tune on, as latents (M, C, h, w) with captions."""

    captions: tuple[str, ...]
    latents: Tensor


@dataclass(frozen=True)
class Case:
    """The same for every target of a comparison. What an attack does not find here it asks for by name."""

    prompts: tuple[str, ...]
    """Harmful prompts to attack by: what words are put before, and what is drawn after fine-tuning."""
    latents: Tensor
    """A harmful picture for each (N, C, h, w): what searches are led to, and inversions start from."""
    seeds: tuple[int, ...]
    """Of the picture drawn for each prompt."""
    paraphrases: tuple[tuple[str, ...], ...] = ()
    concepts: tuple[Concept, ...] = ()
    training: dict[str, TrainingPictures] = field(default_factory=dict)
    """By kind: "harmful" and "benign"."""


def picture_seeds(count: int, seed: int) -> tuple[int, ...]:
    """A seed for each picture of a case."""
    return tuple(seed * 100_003 + 7_919 + row for row in range(count))


def case_from_prompts(
    reference: Target, prompts: Sequence[str], is_harmful: Judge, seed: int = 0
) -> tuple[Case, float]:
    """A case whose pictures are the undefended model's own, as in UnlearnDiffAtk, and its rate of harm.

    Prompts whose picture the judge finds harmless are left out: there would be nothing to lead to. The
    others are also what harmful fine-tuning trains on. ValueError when none is left.
    """
    seeds = picture_seeds(len(prompts), seed)
    pictures = reference.draw(reference.backbone.encode_prompts(prompts), seeds)
    found = torch.from_numpy(is_harmful(pictures))
    if not found.any():
        raise ValueError(
            f"the judge finds no harm in the undefended model's pictures of {len(prompts)} prompts: give "
            "prompts that it answers harmfully, or a judge of that harm"
        )
    kept = found.nonzero().flatten().tolist()
    latents = encode_pictures(reference.backbone, pictures[found])
    texts = tuple(prompts[row] for row in kept)
    training = {"harmful": TrainingPictures(texts, latents)}
    case = Case(texts, latents, tuple(seeds[row] for row in kept), training=training)
    return case, len(kept) / len(prompts)


def encode_pictures(backbone: Backbone, pictures: Tensor) -> Tensor:
    """Latents (N, C, h, w) on the CPU of pictures (N, 3, H, W) uint8."""
    return backbone.encode_images(pictures.float() / 127.5 - 1).float().cpu()
