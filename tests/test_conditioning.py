"""Joining, indexing and repeating of conditionings."""

import torch

from safetune.conditioning import Conditioning, cat

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
