from pathlib import Path

import pytest
import torch
from torch import Tensor

from safetune.backbone import Backbone, load_backbone
from safetune.evaluation.baselines.uce import (
    UceSettings,
    aligned_rows,
    edit,
    edit_projection,
    last_token,
    uce_map,
)


@pytest.fixture
def backbone(tiny_pipeline: Path) -> Backbone:
    return load_backbone(tiny_pipeline)


def test_one_layer_by_hand() -> None:
    # (1, 0) becomes (0, 1), which is preserved; lamb 1. Given: diag(2, 2). Wanted: diag(1, 2), of lamb and of
    # what is preserved, and g c^T = [[0, 0], [1, 0]].
    change = uce_map(torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]]), torch.tensor([[0, 1.0]]), lamb=1.0)
    assert torch.allclose(change, torch.tensor([[0.5, 0], [0.5, 1]], dtype=torch.float64))
    edited = edit_projection(torch.tensor([[4.0, 6.0]]), change)
    assert torch.allclose(edited, torch.tensor([[5.0, 6.0]])) and edited.dtype == torch.float32


def test_the_solution_has_the_smallest_objective() -> None:
    draw = torch.Generator().manual_seed(0)
    erase, guide, preserve, weight = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((3, 6), (3, 6), (4, 6), (5, 6))
    )

    def objective(edited: Tensor) -> Tensor:
        erased = 2 * (edited @ erase.T - weight @ guide.T).square().sum()
        kept = 3 * ((edited - weight) @ preserve.T).square().sum()
        return erased + kept + 0.7 * (edited - weight).square().sum()

    edited = edit_projection(weight, uce_map(erase, guide, preserve, 2.0, 3.0, 0.7)).requires_grad_(True)
    (slope,) = torch.autograd.grad(objective(edited), edited)
    assert slope.abs().max() < 1e-9


def test_unpaired_rows_and_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="give one for each"):
        uce_map(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="lamb above 0"):
        UceSettings(lamb=0)
    with pytest.raises(ValueError, match="for the name"):
        UceSettings(templates=("a thing",))


def test_rows_run_from_the_last_word_on(backbone: Backbone) -> None:
    assert [last_token(backbone, text) for text in ("", "knife", "kitchen knife")] == [0, 1, 2]
    erased, guides = aligned_rows(backbone, ["kitchen knife"], "cat")
    assert torch.equal(erased, backbone.encode_prompts(["kitchen knife"]).embeds[0, 2:])
    assert torch.equal(guides, backbone.encode_prompts(["cat"]).embeds[0, 1:-1])


def test_erased_becomes_its_guide_and_preserved_stays(backbone: Backbone) -> None:
    layer = backbone.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    before = {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}
    settings = UceSettings(erase_scale=100, preserve_scale=100, lamb=1e-3)
    count = edit(backbone, ["knife"], ["apple"], settings)
    after = backbone.denoiser.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert len(changed) == count
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in changed)
    path = next(name for name, module in backbone.denoiser.named_modules() if module is layer)
    rows, guides = aligned_rows(backbone, ["knife"], "")
    kept = backbone.encode_prompts(["apple"]).embeds[0]
    for name in ("to_k", "to_v"):
        old, new = before[f"{path}.{name}.weight"], after[f"{path}.{name}.weight"]

        def gap(rows: Tensor, wanted: Tensor, old: Tensor = old, new: Tensor = new) -> float:
            return float(
                (rows @ new.T - wanted @ old.T).norm() / (rows @ old.T - wanted @ old.T).norm().clamp(1e-3)
            )

        assert gap(rows, guides) < 0.1
        assert float((kept @ new.T - kept @ old.T).norm() / (kept @ old.T).norm()) < 0.02


def test_without_preserving_the_other_concept_moves_more(tiny_pipeline: Path) -> None:
    moved = []
    for preserve in ([], ["apple"]):
        one = load_backbone(tiny_pipeline)
        key = one.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
        rows = one.encode_prompts(["apple"]).embeds[0]
        old = key(rows)
        edit(one, ["knife"], preserve, UceSettings(lamb=1e-2))
        moved.append(float((key(rows) - old).norm()))
    assert moved[1] < 0.5 * moved[0]


def test_refusals(backbone: Backbone, tiny_sd3: Path) -> None:
    with pytest.raises(ValueError, match="no concept"):
        edit(backbone, [])
    with pytest.raises(ValueError, match="no cross-attention"):
        edit(load_backbone(tiny_sd3), ["knife"])
