"""Prompt search: descent, words of the vocabulary, an untouched target, the same answer twice."""

import numpy as np
import pytest
import torch
from torch import Tensor

from safetune.evaluation.attacks.search import other_seeds_rate, search_prompts
from safetune.evaluation.attacks.target import PipelineTarget

from .conftest import PROMPTS, ToyTarget, always, never


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("method", ["unlearndiffatk", "p4d", "random"])
def test_a_search_finds_words_and_leaves_the_target(
    target: PipelineTarget, latents: Tensor, method: str
) -> None:
    def run() -> object:
        return search_prompts(
            target, PROMPTS, latents, [1, 2], never, method, reference=target, tokens=3, steps=4, checks=2
        )

    first, second = run(), run()
    assert torch.equal(first.learned, second.learned) and torch.equal(first.pictures, second.pictures)
    special = set(target.backbone.pipeline.tokenizer.all_special_ids)
    ids = first.learned.flatten().tolist()
    assert first.learned.shape == (2, 3) and not set(ids) & special
    assert all(0 <= number < len(target.backbone.pipeline.tokenizer) for number in ids)
    report = first.report
    assert (report.count, report.pre_attack_rate, report.attack_rate) == (2, 0.0, 0.0)
    assert (report.steps, report.tries) == (0 if method == "random" else 4, 3)
    assert other_seeds_rate(target, PROMPTS, first, [3, 4], always) is None


@pytest.mark.parametrize("method", ["unlearndiffatk", "p4d"])
def test_a_search_descends(toy: ToyTarget, method: str) -> None:
    """The toy believes in the picture that the prompt asks for: a prompt of that picture is to be found."""
    wanted = ["knife knife knife", "blood skull bomb"]
    prompts = toy.backbone.encode_prompts(wanted)
    found = search_prompts(
        toy, ["cat", "dog"], toy.believed(prompts), [1, 2], never, method, reference=toy, wanted=wanted,
        tokens=3, steps=200, checks=1, noises=1, seed=1,
    )  # fmt: skip
    chance = search_prompts(
        toy, ["cat", "dog"], toy.believed(prompts), [1, 2], never, "random", tokens=3, steps=1, checks=1
    )
    assert error(toy, found.learned, prompts) < 0.7 * error(toy, chance.learned, prompts)


def error(toy: ToyTarget, words: Tensor, wanted: object) -> float:
    from safetune.evaluation.attacks.search import written
    from safetune.evaluation.attacks.tokens import TokenSpace

    space = TokenSpace(toy.backbone)
    ids, _ = space.prefixed(["cat", "dog"], words.shape[1])
    believed = toy.believed(written(space, ids, words, torch.arange(2)))
    return float((believed - toy.believed(wanted)).pow(2).mean())


def test_what_is_broken_is_searched_no_more(target: PipelineTarget, latents: Tensor) -> None:
    """The first prompt is harmful at once, the second with the first words that are tried."""
    calls = []

    def judge(pictures: Tensor) -> np.ndarray:
        calls.append(len(pictures))
        return np.array([True, False]) if len(calls) == 1 else np.array([True])

    found = search_prompts(target, PROMPTS, latents, [1, 2], judge, tokens=2, steps=6, checks=3)
    assert calls == [2, 1]
    assert found.learned[0].tolist() == [-1, -1] and (found.learned[1] >= 0).all()
    assert (found.report.pre_attack_rate, found.report.attack_rate) == (0.5, 1.0)
    assert other_seeds_rate(target, PROMPTS, found, [8, 9], never) == 0.0
    assert other_seeds_rate(target, PROMPTS, found, [8, 9], always) == 1.0


def test_a_prompts_search_does_not_depend_on_its_neighbours(target: PipelineTarget, latents: Tensor) -> None:
    def run(batch_size: int) -> Tensor:
        found = search_prompts(
            target, PROMPTS, latents, [1, 2], never, "p4d", target, tokens=2, steps=3, checks=1,
            batch_size=batch_size,
        )  # fmt: skip
        return found.learned

    assert torch.equal(run(1), run(2))


def test_mistakes_are_named(target: PipelineTarget, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="allowed: unlearndiffatk, p4d, random"):
        search_prompts(target, PROMPTS, latents, [1, 2], never, "gcg")
    with pytest.raises(ValueError, match="give `reference`"):
        search_prompts(target, PROMPTS, latents, [1, 2], never, "p4d")
    with pytest.raises(ValueError, match="2 prompts, 1 pictures, 2 seeds"):
        search_prompts(target, PROMPTS, latents[:1], [1, 2], never)
    with pytest.raises(ValueError, match="give 1 to 2 checks"):
        search_prompts(target, PROMPTS, latents, [1, 2], never, steps=2, checks=3)
