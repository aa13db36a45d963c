"""The redirector: zero at the start, saved and loaded whole, tied to its base."""

from pathlib import Path

import pytest
import torch

from safetune.hgr import HGR


def build() -> HGR:
    torch.manual_seed(0)
    return HGR(8, 6, width=16, heads=2, base_fingerprint="abc", concepts=["knife"], categories=["weapons"])


def test_untrained_returns_the_empty_prompt_bit_for_bit() -> None:
    embeds, null = torch.randn(3, 6, 8), torch.randn(1, 6, 8)
    assert torch.equal(build()(embeds, null), null.expand(3, 6, 8))
    half = null.to(torch.bfloat16)
    assert torch.equal(build()(embeds.to(torch.bfloat16), half), half.expand(3, 6, 8))


def test_rows_do_not_see_each_other() -> None:
    hgr, embeds, null = build(), torch.randn(3, 6, 8), torch.zeros(1, 6, 8)
    torch.nn.init.normal_(hgr.project_out.weight)
    torch.testing.assert_close(hgr(embeds, null)[1:2], hgr(embeds[1:2], null))


def test_round_trip(tmp_path: Path) -> None:
    hgr = build()
    torch.nn.init.normal_(hgr.project_out.weight)
    hgr.prototypes.normal_()
    hgr.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded = HGR.from_pretrained(tmp_path)
    embeds, null = torch.randn(2, 6, 8), torch.randn(1, 6, 8)
    assert torch.equal(loaded(embeds, null), hgr(embeds, null))
    assert torch.equal(loaded.prototypes, hgr.prototypes)
    assert (loaded.concepts, loaded.categories, loaded.base_fingerprint) == (("knife",), ("weapons",), "abc")


def test_another_base_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to the base model abc, the one given is xyz"):
        build().check_base("xyz")


def test_concepts_and_categories_go_together() -> None:
    with pytest.raises(ValueError, match="1 concepts but 0 categories"):
        HGR(8, 6, width=16, heads=2, concepts=["knife"])
