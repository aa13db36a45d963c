"""Unified Concept Editing (Gandikota et al. 2023, arXiv 2308.14761): erasure in closed form.

The keys and values that cross-attention makes of a concept become those of its guide; those of preserved
concepts stay. Nothing is drawn or trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.evaluation.baselines.layers import cross_attentions


@dataclass(frozen=True)
class UceSettings:
    """Weights of the terms of UCE's least squares, and what stands for a concept."""

    erase_scale: float = 1.0
    """Weight of the erased concepts."""
    preserve_scale: float = 1.0
    """Weight of the preserved ones."""
    lamb: float = 0.5
    """Weight of the distance to the old weights, which every direction has that no concept covers."""
    guide: str = ""
    """What an erased concept becomes."""
    templates: tuple[str, ...] = ("{}",)
    """Prompts that stand for a concept; {} is its name."""

    def __post_init__(self) -> None:
        """ValueError for weights that have no solution, and for templates without a place for the name."""
        if min(self.erase_scale, self.preserve_scale) < 0 or self.lamb <= 0:
            raise ValueError(
                f"erase_scale {self.erase_scale}, preserve_scale {self.preserve_scale}, lamb {self.lamb}: "
                "give scales of 0 or more, and a lamb above 0"
            )
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ValueError(f"templates {self.templates}: give one or more, each with {{}} for the name")


def uce_map(
    erase: Tensor,
    guide: Tensor,
    preserve: Tensor,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    lamb: float = 0.5,
) -> Tensor:
    """M (D, D) in float64 by which every projection W (O, D) is edited: W M minimises UCE's objective.

    sum a |W' c - W g|^2 + sum b |W' p - W p|^2 + lamb |W' - W|^2 over pairs of rows c, g of erase and guide
    (E, D) and rows p of preserve (P, D); a, b the scales. Its solution is W M, with M the same for every W:
    M = (a sum g c^T + b sum p p^T + lamb I) (a sum c c^T + b sum p p^T + lamb I)^-1, the paper's
    closed form. ValueError where erase and guide do not pair.
    """
    if erase.shape != guide.shape:
        raise ValueError(
            f"{tuple(erase.shape)} rows to erase, {tuple(guide.shape)} guides: give one for each"
        )
    c, g, p = (rows.double() for rows in (erase, guide, preserve))
    kept = preserve_scale * p.T @ p + lamb * torch.eye(c.shape[1], dtype=torch.float64, device=c.device)
    wanted, given = erase_scale * g.T @ c + kept, erase_scale * c.T @ c + kept
    return torch.linalg.solve(given, wanted, left=False)


def edit_projection(weight: Tensor, change: Tensor) -> Tensor:
    """The projection (O, D) edited by uce_map's M (D, D), in its own precision."""
    return (weight.double() @ change.to(weight.device)).to(weight.dtype)


@torch.no_grad()
def edit(
    backbone: Backbone,
    erase: Sequence[str],
    preserve: Sequence[str] = (),
    settings: UceSettings | None = None,
) -> int:
    """Edit to_k and to_v of every cross-attention of the backbone's denoiser; returns how many were edited.

    Raises ValueError for no concept, and for a denoiser that is no UNet with cross-attention.
    """
    settings = settings or UceSettings()
    if not erase:
        raise ValueError("no concept to erase: give one or more")
    layers = cross_attentions(backbone.denoiser)
    prompts = [template.format(name) for name in erase for template in settings.templates]
    erased, guides = aligned_rows(backbone, prompts, settings.guide)
    kept = erased[:0]
    if preserve:
        kept = backbone.encode_prompts(
            [template.format(name) for name in preserve for template in settings.templates]
        ).embeds.flatten(0, 1)
    change = uce_map(erased, guides, kept, settings.erase_scale, settings.preserve_scale, settings.lamb)
    paths = [f"{path}.{name}.weight" for path in layers for name in ("to_k", "to_v")]
    for path in paths:
        weight = backbone.denoiser.get_parameter(path)
        weight.copy_(edit_projection(weight, change))
    return len(paths)


def aligned_rows(backbone: Backbone, prompts: Sequence[str], guide: str) -> tuple[Tensor, Tensor]:
    """Pairs of token embeddings (E, D): from the last token of each prompt on, and of the guide likewise.

    What is after the last word, the end and its padding, carries the whole prompt: it is erased too. The
    empty guide begins with its first token, which says nothing.
    """
    embeds = backbone.encode_prompts([*prompts, guide]).embeds
    *starts, start = (last_token(backbone, prompt) for prompt in (*prompts, guide))
    length, guided = embeds.shape[1], embeds[-1]
    erased, guides = [], []
    for row, first in zip(embeds[:-1], starts, strict=True):
        count = length - max(first, start)
        erased.append(row[first : first + count])
        guides.append(guided[start : start + count])
    return torch.cat(erased), torch.cat(guides)


def last_token(backbone: Backbone, prompt: str) -> int:
    """Place of the last token before the end, as far as the encoder reads."""
    tokenizer = backbone.pipeline.tokenizer
    count = len(tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids)
    return max(0, count - 2)
