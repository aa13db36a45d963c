from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safetune.backbone import Backbone, load_backbone
from safetune.evaluation.baselines import esd
from safetune.evaluation.baselines.esd import (
    EsdSettings,
    drawn_rows,
    esd_loss,
    esd_target,
    half_drawn,
    train_esd,
)

QUICK = EsdSettings(steps=4, batch_size=3, lr=1e-3, sampler_steps=3)
CONCEPTS = ["knife", "gun", "bomb", "blood"]


@pytest.fixture
def backbone(tiny_pipeline: Path) -> Backbone:
    return load_backbone(tiny_pipeline)


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


def test_loss_by_hand() -> None:
    null, concept = torch.full((2, 1, 1, 2), 1.0), torch.full((2, 1, 1, 2), 3.0)
    assert torch.equal(esd_target(null, concept, 2.0), torch.full((2, 1, 1, 2), -3.0))  # 1 - 2 (3 - 1)
    student = torch.tensor([[-3.0, -3.0], [0.0, -2.0]]).view(2, 1, 1, 2)
    assert esd_loss(student, null, concept, 2.0).tolist() == [0.0, 5.0]  # (9 + 1) / 2


@pytest.mark.parametrize("variant", ["esd-x", "esd-u"])
def test_a_variant_changes_its_own_weights_alone(backbone: Backbone, variant: esd.Variant) -> None:
    before = weights(backbone)
    losses = train_esd(backbone, CONCEPTS, variant, QUICK)
    found = changed(before, weights(backbone))
    cross = {name for name in before if ".attn2." in name}
    own = cross if variant == "esd-x" else set(before) - cross
    assert len(losses) == 4 and found <= own and len(found) > 0.8 * len(own)
    assert not any(value.requires_grad for value in backbone.denoiser.parameters())


def test_training_leads_away_from_the_concept(backbone: Backbone, tiny_pipeline: Path) -> None:
    base = load_backbone(tiny_pipeline)
    train_esd(backbone, ["knife"], "esd-x", replace(QUICK, steps=20))
    noisy, times = (
        torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5)),
        torch.tensor([700, 999]),
    )
    concept = base.encode_prompts(["knife"]).expand(2)
    with torch.no_grad():
        null, own = (base.predict(noisy, times, rows) for rows in (base.null(2), concept))
        trained = backbone.predict(noisy, times, concept)
    assert esd_loss(trained, null, own, 1.0).mean() < 0.2 * esd_loss(own, null, own, 1.0).mean()


def test_a_killed_run_ends_with_the_same_bits(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(esd, "SAVE_EVERY", 2)
    state = tmp_path / "state.safetensors"
    whole, part, rest = (load_backbone(tiny_pipeline) for _ in range(3))
    losses = train_esd(whole, CONCEPTS, "esd-x", QUICK, seed=1)
    assert train_esd(part, CONCEPTS, "esd-x", QUICK, 1, state, stop_after=3) == losses[:3]  # saved after 2
    assert train_esd(rest, CONCEPTS, "esd-x", QUICK, 1, state) == losses[2:]
    assert not changed(weights(whole), weights(rest))
    with pytest.raises(ValueError, match="other settings"):
        train_esd(load_backbone(tiny_pipeline), CONCEPTS, "esd-x", QUICK, 2, state)


def test_every_concept_has_its_turn_in_a_round() -> None:
    rows = [int(row) for step in range(4) for row in drawn_rows(6, 3, step, seed=0)]
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6)) and rows[:6] != rows[6:]
    assert len(drawn_rows(2, 5, 0, seed=0)) == 5


def test_partial_loops_stop_at_timesteps_of_the_sampler(backbone: Backbone) -> None:
    rows, null = backbone.encode_prompts(["knife", "gun"]), backbone.null()
    drawn = [half_drawn(backbone, rows, null, QUICK, step, 0) for step in range(12)]
    assert {int(timestep) for _, timestep in drawn} == {999, 666, 332}
    assert all(noisy.shape == (2, 4, 16, 16) for noisy, _ in drawn)
    started = next(noisy for noisy, timestep in drawn if timestep == 999)
    drawn_on = next(noisy for noisy, timestep in drawn if timestep == 332)
    assert started.std() == pytest.approx(1, abs=0.1) and torch.isfinite(drawn_on).all()
    again = half_drawn(backbone, rows, null, QUICK, 0, 0)
    assert torch.equal(again[0], drawn[0][0])


def test_refusals(backbone: Backbone, tiny_sd3: Path) -> None:
    with pytest.raises(ValueError, match="no concept"):
        train_esd(backbone, [], "esd-x", QUICK)
    with pytest.raises(ValueError, match="not flow"):
        train_esd(load_backbone(tiny_sd3), CONCEPTS, "esd-x", QUICK)
    with pytest.raises(ValueError, match="a rate above 0"):
        EsdSettings(lr=0)
    with pytest.raises(ValueError, match="for the name"):
        EsdSettings(templates=())
