"""Concept inversion: a word of one's own, learned from harmful pictures on the defended model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safetune.diffusion import mse_per_sample
from safetune.evaluation.attacks.report import Attacked, AttackReport, Judge, Stopwatch, rate
from safetune.evaluation.attacks.target import Target
from safetune.evaluation.attacks.tokens import PLACEHOLDER, TokenSpace


@dataclass(frozen=True)
class Concept:
    """What one learned word shall mean. Prompts hold the placeholder `*` where it goes."""

    name: str
    """What it is called in words: takes the placeholder's place before the attack."""
    captions: tuple[str, ...]
    """One for each picture to learn from."""
    latents: Tensor
    """Those pictures (M, C, h, w)."""
    drawn: tuple[str, ...]
    """Prompts that are drawn and judged."""


def invert_concepts(
    target: Target,
    concepts: Sequence[Concept],
    is_harmful: Judge,
    tokens: int = 1,
    steps: int = 500,
    lr: float = 0.02,
    pictures_per_step: int = 4,
    concepts_at_once: int = 8,
    seed: int = 0,
) -> Attacked:
    """Learn an embedding for each concept by the diffusion loss, weights untouched (arXiv 2308.01508).

    That is textual inversion (arXiv 2208.01618) on the defended model. All concepts are learned in the same
    steps, each from `pictures_per_step` of its pictures at random timesteps; the authors take 4 pictures with
    4 accumulations for up to 5000 steps at 5e-3 times that batch. Rates are over all prompts drawn, one seed
    for each from `seed`. `learned` is (C, tokens, D). ValueError for a prompt without placeholder.
    """
    watch, space, backbone = Stopwatch(), TokenSpace(target.backbone), target.backbone
    _check(concepts)
    drawn = [(number, text) for number, concept in enumerate(concepts) for text in concept.drawn]
    seeds = [seed * 100_003 + row for row in range(len(drawn))]
    named = [text.replace(PLACEHOLDER, concepts[number].name) for number, text in drawn]
    marks = " ".join([PLACEHOLDER] * tokens)
    placed = [_placed(space, concept.captions, marks, tokens) for concept in concepts]
    ids, mask = _placed(space, [text for _, text in drawn], marks, tokens)
    before = is_harmful(target.draw(backbone.encode_prompts(named), seeds))

    mean = space.table[space.words().to(space.table.device)].float().mean(0)
    vectors = mean.repeat(len(concepts), tokens, 1).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        total = 0.0
        for group in torch.arange(len(concepts)).split(concepts_at_once):
            batch = [
                _draw_pictures(concepts[number], placed[number], pictures_per_step, generator)
                for number in group.tolist()
            ]
            clean, t, noise, texts, marked = (torch.cat(part) for part in zip(*batch, strict=True))
            clean, t, noise = (part.to(backbone.device) for part in (clean, t, noise))
            repeated = vectors[group.to(vectors.device)].repeat_interleave(pictures_per_step, 0)
            prompts = space.encode(texts, marked, repeated.flatten(0, 1))
            output = target.predict(backbone.add_noise(clean, noise, t), t, prompts)
            loss = mse_per_sample(output, backbone.true_output(clean, noise, t))
            (loss.sum() / pictures_per_step).backward()
            total += float(loss.detach().mean()) * len(group)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / len(concepts))

    learned = vectors.detach()
    rows = torch.tensor([number for number, _ in drawn], device=learned.device)
    with torch.no_grad():
        prompts = space.encode(ids, mask, learned[rows].flatten(0, 1))
    pictures = target.draw(prompts, seeds)
    harmful = is_harmful(pictures)
    tail = losses[-max(1, steps // 10) :]
    report = AttackReport(
        attack="concept-inversion",
        count=len(drawn),
        pre_attack_rate=rate(before),
        attack_rate=rate(harmful),
        steps=steps,
        tries=1,
        seconds=watch.seconds(),
        seed=seed,
        details={"first_loss": losses[0], "last_loss": sum(tail) / len(tail)} if losses else {},
    )
    return Attacked(report, harmful, pictures, learned.cpu())


def _draw_pictures(
    concept: Concept, placed: tuple[Tensor, Tensor], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Latents, timesteps, noise, ids and mask of `count` of a concept's pictures."""
    rows = torch.randint(0, len(concept.latents), (count,), generator=generator)
    timesteps = torch.randint(0, 1000, (count,), generator=generator)
    noise = torch.randn((count, *concept.latents.shape[1:]), generator=generator)
    return concept.latents[rows], timesteps, noise, placed[0][rows], placed[1][rows]


def _placed(space: TokenSpace, texts: Sequence[str], marks: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts with `tokens` placeholders; ValueError where a text was cut amid them."""
    ids, mask = space.placed([text.replace(PLACEHOLDER, marks) for text in texts])
    wrong = int((mask.sum(1) != tokens).sum())
    if wrong:
        raise ValueError(
            f"{wrong} prompts have not {tokens} placeholders within the {space.length} tokens that are read: "
            f"write {PLACEHOLDER!r} once in each, and early in a long one"
        )
    return ids, mask


def _check(concepts: Sequence[Concept]) -> None:
    if not concepts or not all(concept.drawn for concept in concepts):
        raise ValueError("no concept, or one without prompts to draw: give at least one of each")
    for concept in concepts:
        if len(concept.captions) != len(concept.latents) or not concept.captions:
            raise ValueError(
                f"a concept has {len(concept.captions)} captions and {len(concept.latents)} pictures: give "
                "one caption for each picture"
            )
