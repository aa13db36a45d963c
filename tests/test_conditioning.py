"""Joining, indexing and repeating of conditionings."""

import pytest
import torch

from safetune.conditioning import Conditioning, cat, jitter, replace_rows, shift, squared_norm

PROMPTS = Conditioning(torch.arange(12.0).view(2, 3, 2), pooled=torch.tensor([[1.0], [2.0]]))


def test_cat_and_select() -> None:
    joined = cat([PROMPTS, PROMPTS.select(slice(1, 2))])
    assert len(joined) == 3
    assert joined.pooled is not None and joined.pooled.flatten().tolist() == [1.0, 2.0, 2.0]
    assert joined.mask is None
    assert torch.equal(joined.select(torch.tensor([2])).embeds, PROMPTS.embeds[1:])


def test_repeat_keeps_the_order() -> None:
    repeated = PROMPTS.repeat(2)
    assert repeated.pooled is not None and repeated.pooled.flatten().tolist() == [1.0, 2.0, 1.0, 2.0]


def test_expand_copies_nothing() -> None:
    row = PROMPTS.select(slice(0, 1)).expand(4)
    assert row.embeds.shape == (4, 3, 2)
    assert row.embeds.stride(0) == 0


def test_cast_keeps_an_integer_mask() -> None:
    masked = Conditioning(torch.zeros(1, 2, 2), mask=torch.ones(1, 2, dtype=torch.long)).to(torch.bfloat16)
    assert masked.embeds.dtype == torch.bfloat16
    assert masked.mask is not None and masked.mask.dtype == torch.long


def test_shift_adds_one_row_to_every_delta_in_its_precision() -> None:
    null = Conditioning(torch.ones(1, 3, 2), torch.ones(1, 1)).to(torch.bfloat16)
    shifted = shift(null, PROMPTS, strength=2.0)
    assert shifted.embeds.dtype == torch.bfloat16
    assert shifted.embeds[1, 0].tolist() == [1 + 2 * 6, 1 + 2 * 7]
    assert shifted.pooled is not None and shifted.pooled.flatten().tolist() == [3.0, 5.0]


def test_squared_norm_by_hand() -> None:
    assert squared_norm(PROMPTS).tolist() == pytest.approx([55 + 1, 36 + 49 + 64 + 81 + 100 + 121 + 4])


def test_replace_rows() -> None:
    other = Conditioning(torch.zeros(2, 3, 2), torch.zeros(2, 1))
    mixed = replace_rows(PROMPTS, torch.tensor([True, False]), other)
    assert torch.equal(mixed.embeds[0], other.embeds[0])
    assert torch.equal(mixed.embeds[1], PROMPTS.embeds[1])
    assert mixed.pooled is not None and mixed.pooled.flatten().tolist() == [0.0, 2.0]


def test_jitter_of_a_row_depends_on_its_seed_alone() -> None:
    prompts = Conditioning(torch.zeros(3, 4, 2), torch.zeros(3, 5))
    spread = Conditioning(torch.tensor([1.0, 0.0]), torch.ones(5))
    noised = jitter(prompts, spread, 0.5, [7, 8, 9])
    again = jitter(prompts.select(slice(1, 2)), spread, 0.5, [8])
    assert torch.equal(noised.embeds[1:2], again.embeds)
    assert noised.pooled is not None and again.pooled is not None
    assert torch.equal(noised.pooled[1:2], again.pooled)
    assert noised.embeds[..., 0].std() > 0.05
    assert torch.equal(noised.embeds[..., 1], prompts.embeds[..., 1])


def test_jitter_spreads_up_to_its_amount() -> None:
    prompts, spread = Conditioning(torch.ones(400, 8, 4)), Conditioning(torch.full((4,), 2.0))
    share = (jitter(prompts, spread, 0.5, range(400)).embeds - 1).flatten(1).std(1) / 2
    assert share.max() < 0.7
    assert share.mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(jitter(prompts, spread, 0.0, range(400)).embeds, prompts.embeds)
