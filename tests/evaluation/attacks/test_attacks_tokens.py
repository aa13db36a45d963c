"""Token ids, vectors in their place, and the two ways from continuous variables to words."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.evaluation.attacks.relaxation import NearestTokens, TokenDistribution, onto_simplex
from safetune.evaluation.attacks.target import PipelineTarget
from safetune.evaluation.attacks.tokens import TokenSpace

from .conftest import PROMPTS


@pytest.fixture(scope="module")
def space(target: PipelineTarget) -> TokenSpace:
    return TokenSpace(target.backbone)


@pytest.mark.usefixtures("untouched")
def test_ids_are_encoded_as_prompts_are(space: TokenSpace, target: PipelineTarget) -> None:
    ids = space.ids(PROMPTS)
    expected = target.backbone.encode_prompts(PROMPTS).embeds
    assert torch.equal(space.encode(ids).embeds, expected)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 3] = mask[1, 1] = mask[1, 2] = True
    same = space.encode(ids, mask, space.table[ids[mask]]).embeds
    assert torch.equal(same, expected)


@pytest.mark.usefixtures("untouched")
def test_the_gradient_reaches_the_vectors_of_their_own_row(space: TokenSpace) -> None:
    ids, mask = space.prefixed(PROMPTS, 2)
    vectors = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    embeds = space.encode(ids, mask, vectors).embeds
    gradient = torch.autograd.grad(embeds[1].pow(2).sum(), vectors)[0]
    assert gradient[:2].abs().sum() == 0 and (gradient[2:].abs().sum(1) > 0).all()


def test_room_stands_between_the_start_and_the_prompt(space: TokenSpace) -> None:
    plain, (ids, mask) = space.ids(PROMPTS), space.prefixed(PROMPTS, 3)
    tokenizer = space.tokenizer
    assert ids.shape == plain.shape == mask.shape
    assert mask.nonzero().tolist() == [[row, place] for row in (0, 1) for place in (1, 2, 3)]
    for row in (0, 1):
        length = plain[row].tolist().index(tokenizer.eos_token_id)
        assert ids[row, 0] == tokenizer.bos_token_id
        assert ids[row, 4 : length + 4].tolist() == plain[row, 1 : length + 1].tolist()
        assert set(ids[row, length + 4 :].tolist()) <= {tokenizer.pad_token_id}


def test_a_long_prompt_loses_its_end_and_keeps_the_end_token(space: TokenSpace) -> None:
    ids, _ = space.prefixed(["cat " * 40], 5)
    assert ids.shape == (1, 24) and ids[0, -1] == space.tokenizer.eos_token_id
    assert (ids[0, 6:-1] == space.tokenizer("cat", add_special_tokens=False).input_ids[0]).all()
    with pytest.raises(ValueError, match="give 1 to 21"):
        space.prefixed(PROMPTS, 22)


def test_placeholders_are_found_or_asked_for(space: TokenSpace) -> None:
    ids, mask = space.placed(["a cat with a * on the beach"])
    assert mask.sum() == 1 and mask[0, 5] and space.tokenizer.decode(ids[0, 5]).strip() == "*"
    with pytest.raises(ValueError, match="1 of 2 prompts have no"):
        space.placed(["a *", "a cat"])


def test_words_are_ids_without_specials(space: TokenSpace) -> None:
    words = space.words().tolist()
    assert len(words) == len(space.tokenizer) - len(set(space.tokenizer.all_special_ids))
    assert not set(words) & set(space.tokenizer.all_special_ids)


def test_several_encoders_are_refused(tiny_sdxl: Path) -> None:
    with pytest.raises(ValueError, match="single CLIP text encoder"):
        TokenSpace(load_backbone(tiny_sdxl))


def test_projection_onto_the_simplex() -> None:
    values = torch.tensor([[0.5, 0.5, 0.5], [2.0, 0.0, 0.0], [0.1, 0.2, -5.0], [0.2, 0.3, 0.5]])
    expected = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.45, 0.55, 0.0], [0.2, 0.3, 0.5]])
    assert torch.allclose(onto_simplex(values), expected, atol=1e-6)


def test_nearest_tokens_are_words_whose_gradient_passes() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    tokens = NearestTokens(table, torch.tensor([[0, 1]]), lr=0.1, weight_decay=0.0)
    with torch.no_grad():
        tokens.vectors.copy_(torch.tensor([[[0.3, 0.1], [-4.0, -3.0]]]))
    assert tokens.best().tolist() == [[0, 2]]
    sampled = tokens.sample()
    assert torch.allclose(sampled, table[[0, 2]][None], atol=1e-6)
    (sampled * torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).sum().backward()
    assert tokens.vectors.grad.tolist() == [[[1.0, 2.0], [3.0, 4.0]]]


def test_a_distribution_draws_words_and_stays_one() -> None:
    table = torch.eye(4)
    tokens, again = (TokenDistribution(table, 2, 3, lr=0.1, weight_decay=0.0, seed=5) for _ in range(2))
    for _ in range(30):
        sampled = tokens.sample()
        assert torch.allclose(sampled.sum(-1), torch.ones(2, 3), atol=1e-5)
        assert torch.allclose(sampled.max(-1).values, torch.ones(2, 3), atol=1e-5)
        assert torch.equal(sampled, again.sample())
        for one in (tokens, again):
            (one.sample() @ torch.tensor([3.0, 0.0, 3.0, 3.0])).sum().backward()
            one.step()
        assert torch.allclose(tokens.weights.sum(-1), torch.ones(2, 3), atol=1e-5)
    assert (tokens.best() == 1).all()
