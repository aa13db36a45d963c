"""The redirector: zero at the start, saved and loaded whole, tied to its base."""

from pathlib import Path

import pytest
import torch

from safetune.conditioning import Conditioning
from safetune.hgr import HGR


def build(pooled_width: int = 0) -> HGR:
    torch.manual_seed(0)
    options = {"base_fingerprint": "abc", "concepts": ["knife"], "categories": ["weapons"]}
    return HGR(8, 6, width=16, heads=2, pooled_width=pooled_width, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_returns_the_empty_prompt_bit_for_bit(dtype: torch.dtype) -> None:
    prompts = Conditioning(torch.randn(3, 6, 8), torch.randn(3, 5)).to(dtype)
    null = Conditioning(torch.randn(1, 6, 8), torch.randn(1, 5)).to(dtype)
    redirected = build(pooled_width=5).redirect(prompts, null)
    assert torch.equal(redirected.embeds, null.embeds.expand(3, 6, 8))
    assert redirected.pooled is not None and null.pooled is not None
    assert torch.equal(redirected.pooled, null.pooled.expand(3, 5))


def test_rows_do_not_see_each_other() -> None:
    hgr, embeds = build(), torch.randn(3, 6, 8)
    torch.nn.init.normal_(hgr.project_out.weight)
    torch.testing.assert_close(hgr(embeds)[0][1:2], hgr(embeds[1:2])[0])


def test_round_trip(tmp_path: Path) -> None:
    hgr = build()
    torch.nn.init.normal_(hgr.project_out.weight)
    hgr.prototypes.normal_()
    hgr.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded = HGR.from_pretrained(tmp_path)
    embeds = torch.randn(2, 6, 8)
    assert torch.equal(loaded(embeds)[0], hgr(embeds)[0])
    assert torch.equal(loaded.prototypes, hgr.prototypes)
    assert (loaded.concepts, loaded.categories, loaded.base_fingerprint) == (("knife",), ("weapons",), "abc")


def test_another_base_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to the base model abc, the one given is xyz"):
        build().check_base("xyz")


def test_concepts_and_categories_go_together() -> None:
    with pytest.raises(ValueError, match="1 concepts but 0 categories"):
        HGR(8, 6, width=16, heads=2, concepts=["knife"])
