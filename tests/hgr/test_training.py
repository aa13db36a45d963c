"""The warm start and the prototypes, on made-up embeddings."""

import torch

from safetune.conditioning import Conditioning, squared_norm
from safetune.hgr import HGR
from safetune.hgr.training import set_prototypes, unfound_concepts, warm_start


def build(pooled_width: int = 0) -> HGR:
    torch.manual_seed(0)
    names = ["knife", "bomb"]
    return HGR(8, 6, width=32, pooled_width=pooled_width, concepts=names, categories=["weapons", "bombs"])


def prompts_with_harm() -> tuple[Conditioning, Conditioning, torch.Tensor]:
    """40 prompts; every second one holds a harmful direction in one token that its rewriting lacks."""
    torch.manual_seed(1)
    safe, pooled = torch.randn(40, 6, 8), torch.randn(40, 5)
    harmful = torch.arange(40) % 2 == 0
    embeds, told = safe.clone(), pooled.clone()
    embeds[harmful, 2, 0] += 5.0
    told[harmful, 1] += 5.0
    return Conditioning(embeds, told), Conditioning(safe, pooled), harmful


def test_warm_start_finds_what_the_rewriting_lacks() -> None:
    hgr = build(pooled_width=5)
    prompts, safe, harmful = prompts_with_harm()
    left = warm_start(hgr, prompts, safe, harmful, steps=150, batch_size=32)
    delta = hgr.delta(prompts)
    assert left < 0.2
    assert delta.embeds[harmful, 2, 0].mean() > 3.5
    assert delta.pooled is not None and delta.pooled[harmful, 1].mean() > 2.5
    assert squared_norm(delta)[~harmful].mean() < 0.1 * squared_norm(delta)[harmful].mean()


def test_warm_start_is_a_function_of_its_seed() -> None:
    prompts, safe, harmful = prompts_with_harm()
    first, second = build(), build()
    embeds, rewritten = Conditioning(prompts.embeds), Conditioning(safe.embeds)
    for hgr in (first, second):
        warm_start(hgr, embeds, rewritten, harmful, steps=3, batch_size=8, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_no_warm_start() -> None:
    hgr = build()
    prompts, safe, harmful = prompts_with_harm()
    assert warm_start(hgr, Conditioning(prompts.embeds), Conditioning(safe.embeds), harmful, steps=0) == 1.0
    assert hgr.delta(Conditioning(prompts.embeds)).embeds.abs().max() == 0


def test_a_concept_that_was_not_found_is_named() -> None:
    hgr = build()
    torch.nn.init.normal_(hgr.project_out.weight)
    set_prototypes(hgr, Conditioning(torch.randn(4, 6, 8)), ["knife", "knife", "", ""])
    assert unfound_concepts(hgr) == ["bomb"]
