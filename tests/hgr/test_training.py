"""The warm start and the prototypes, on made-up embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safetune.conditioning import Conditioning, cat, squared_norm
from safetune.hgr import HGR
from safetune.hgr.rows import EncodedRows
from safetune.hgr.training import set_prototypes, unfound_concepts, warm_start


def build(pooled_width: int = 0) -> HGR:
    torch.manual_seed(0)
    names = ["knife", "bomb"]
    return HGR(8, 6, width=32, pooled_width=pooled_width, concepts=names, categories=["weapons", "bombs"])


def rows_with_harm() -> tuple[EncodedRows, np.ndarray, np.ndarray]:
    """40 prompts; every second one holds a harmful direction in one token that its rewriting lacks."""
    torch.manual_seed(1)
    safe, pooled = torch.randn(40, 6, 8), torch.randn(40, 5)
    harmful = torch.arange(40) % 2 == 0
    embeds, told = safe.clone(), pooled.clone()
    embeds[harmful, 2, 0] += 5.0
    told[harmful, 1] += 5.0
    table = cat([Conditioning(embeds, told), Conditioning(safe, pooled)])
    prompts, negatives = torch.arange(40), torch.arange(40, 80)
    encoded = EncodedRows(table, prompts, prompts, negatives, harmful)
    return encoded, np.arange(0, 40, 2), np.arange(1, 40, 2)


def without_pooled(encoded: EncodedRows) -> EncodedRows:
    return replace(encoded, table=Conditioning(encoded.table.embeds))


def test_warm_start_finds_what_the_rewriting_lacks() -> None:
    hgr = build(pooled_width=5)
    encoded, harmful, clean = rows_with_harm()
    left = warm_start(hgr, encoded, harmful, clean, steps=150, batch_size=32)
    delta = hgr.delta(encoded.table.select(encoded.prompts))
    assert left < 0.2
    assert delta.embeds[harmful, 2, 0].mean() > 3.5
    assert delta.pooled is not None and delta.pooled[harmful, 1].mean() > 2.5
    assert squared_norm(delta)[clean].mean() < 0.1 * squared_norm(delta)[harmful].mean()


def test_warm_start_of_the_concept_form_finds_the_concept() -> None:
    hgr = build()
    encoded, harmful, clean = rows_with_harm()
    table = without_pooled(encoded).table
    concept = torch.zeros(1, 6, 8)
    concept[:, :, 3] = 4.0
    table = cat([Conditioning(torch.zeros(1, 6, 8)), Conditioning(concept), table])
    prompts, places = encoded.prompts + 2, encoded.prompts + 2
    positives, negatives = torch.where(encoded.harmful, 1, places), torch.where(encoded.harmful, 0, places)
    rows = EncodedRows(table, prompts, positives, negatives, encoded.harmful)
    assert warm_start(hgr, rows, harmful, clean, steps=150, batch_size=32) < 0.2
    delta = hgr.delta(table.select(prompts)).embeds
    torch.testing.assert_close(delta[harmful].mean(0), concept[0], atol=1.0, rtol=0.0)


def test_warm_start_is_a_function_of_its_seed_and_of_the_rows_it_is_given() -> None:
    encoded, harmful, clean = rows_with_harm()
    first, second, third = build(), build(), build()
    rows = without_pooled(encoded)
    for hgr in (first, second):
        warm_start(hgr, rows, harmful, clean, steps=3, batch_size=8, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    rows.table.embeds[[0, 40]] = torch.nan  # a held-out row is not looked at
    warm_start(third, rows, harmful[1:], clean, steps=3, batch_size=8, seed=5)
    assert all(weight.isfinite().all() for weight in third.parameters())


def test_a_context_of_autocast_around_it_changes_nothing() -> None:
    """Autocast keeps copies of weights until it ends: 150 steps inside would all see the first ones."""
    encoded, harmful, clean = rows_with_harm()
    rows, first, second = without_pooled(encoded), build(), build()
    left = warm_start(first, rows, harmful, clean, steps=150, batch_size=32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = warm_start(second, rows, harmful, clean, steps=150, batch_size=32)
    assert inside == pytest.approx(left, rel=0.2)
    assert left < 0.2


def test_no_warm_start() -> None:
    hgr = build()
    encoded, harmful, clean = rows_with_harm()
    assert warm_start(hgr, without_pooled(encoded), harmful, clean, steps=0) == 1.0
    assert hgr.delta(Conditioning(encoded.table.embeds)).embeds.abs().max() == 0


def test_prototypes_are_means_and_a_concept_that_was_not_found_is_named() -> None:
    hgr = build()
    torch.nn.init.normal_(hgr.project_out.weight)
    encoded = without_pooled(rows_with_harm()[0])
    set_prototypes(hgr, encoded, ["knife", "knife", *[""] * 38])
    expected = hgr.delta(encoded.table.select(slice(0, 2))).embeds.mean(0)
    torch.testing.assert_close(hgr.prototypes[0], expected)
    assert unfound_concepts(hgr) == ["bomb"]
