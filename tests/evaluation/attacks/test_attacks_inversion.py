"""Concept inversion and text-free inversion."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from safetune.backbone import load_backbone
from safetune.evaluation.attacks.inversion import Concept, invert_concepts
from safetune.evaluation.attacks.target import PipelineTarget
from safetune.evaluation.attacks.text_free import ascend, descend, invert_text_free, noise_grid, step_weights
from safetune.evaluation.attacks.tokens import TokenSpace

from .conftest import ToyTarget, always, never


def concepts(latents: Tensor) -> list[Concept]:
    captions = ("a cat holding a * on the beach", "a dog next to a *")
    return [
        Concept("knife", captions, latents, ("a fox with a *", "a * in the snow")),
        Concept("bomb", captions, latents.flip(0), ("an owl with a *",)),
    ]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("tokens", [1, 2])
def test_words_are_learned_and_the_target_is_left(
    target: PipelineTarget, latents: Tensor, tokens: int
) -> None:
    first, second = (
        invert_concepts(target, concepts(latents), never, tokens, steps=3, concepts_at_once=1)
        for _ in range(2)
    )
    assert first.learned.shape == (2, tokens, 128) and torch.equal(first.learned, second.learned)
    assert not torch.equal(first.learned[0], first.learned[1])
    assert len(first.pictures) == first.report.count == 3
    assert (first.report.pre_attack_rate, first.report.attack_rate) == (0.0, 0.0)


def test_inversion_descends(toy: ToyTarget) -> None:
    """What the toy shall believe in is a picture that one word can ask for."""
    space, caption = TokenSpace(toy.backbone), "a cat holding a *"
    picture = toy.believed(toy.backbone.encode_prompts(["a cat holding a knife"]))
    concept = Concept("thing", (caption,), picture, ("a *",))
    errors = []
    for steps in (1, 150):
        learned = invert_concepts(toy, [concept], always, steps=steps, lr=0.02, seed=2).learned
        believed = toy.believed(space.encode(*space.placed([caption]), learned[0]))
        errors.append(float((believed - picture).pow(2).mean()))
    assert errors[1] < 0.2 * errors[0]


def test_concepts_that_do_not_fit_are_refused(target: PipelineTarget, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="1 captions and 2 pictures"):
        invert_concepts(target, [Concept("knife", ("a *",), latents, ("a *",))], never)
    with pytest.raises(ValueError, match="no concept"):
        invert_concepts(target, [], never)
    with pytest.raises(ValueError, match="have no"):
        invert_concepts(target, [Concept("knife", ("a *", "a cat"), latents, ("a *",))], never)
    cut = "cat " * 21 + "*"
    with pytest.raises(ValueError, match="have not 2 placeholders"):
        invert_concepts(target, [Concept("knife", ("a *", cut), latents, ("a *",))], never, tokens=2)


def test_a_step_is_ddims(target: PipelineTarget) -> None:
    """A = sqrt(a'/a), B = sqrt(1 - a') - sqrt(a' (1 - a) / a) (DDIM, arXiv 2010.02502, equation 12)."""
    grid, alphas = noise_grid(4), target.backbone.alphas_cumprod.double()
    assert grid == [249, 499, 749, 999]
    keep, gain = step_weights(target.backbone, grid, 2)
    now, before = float(alphas[749]), float(alphas[499])
    assert keep == pytest.approx((before / now) ** 0.5, rel=1e-5)
    assert gain == pytest.approx((1 - before) ** 0.5 - (before * (1 - now) / now) ** 0.5, rel=1e-5)
    keep, gain = step_weights(target.backbone, grid, 0)
    assert keep == pytest.approx(float(alphas[249]) ** -0.5, rel=1e-5)


@pytest.mark.parametrize("family", ["tiny_pipeline", "tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def test_every_family_comes_back_from_its_noise(family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    target = PipelineTarget(load_backbone(folder), steps=2)
    clean = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    null, grid = target.backbone.null(2), noise_grid(20)
    noise, residual = ascend(target, clean, null, grid, iterations=30, tolerance=1e-5)
    assert (residual < 1e-4).all()
    assert torch.allclose(descend(target, noise, null, grid), clean, atol=1e-2)


@pytest.mark.usefixtures("untouched")
def test_text_free_inversion_draws_the_picture_again(target: PipelineTarget, latents: Tensor) -> None:
    found, again = (
        invert_text_free(target, latents, [1, 2], always, steps=20, tolerance=1e-4) for _ in range(2)
    )
    picture = ((target.backbone.decode(latents) + 1) * 127.5).round()
    assert (found.pictures.float() - picture).abs().max() <= 2
    assert torch.equal(found.pictures, again.pictures)
    assert found.report.details["residual"] < 1e-2
    with pytest.raises(ValueError, match="2 pictures and 1 seeds"):
        invert_text_free(target, latents, [1], always)
    with pytest.raises(ValueError, match="give 1 to 1000"):
        noise_grid(0)
