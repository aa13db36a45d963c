"""Validation by hand, its stop and its alarm."""

import math
from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.conditioning import shift
from safetune.diffusion import seeded_noise, signal_weight
from safetune.hgr import HGR
from safetune.hgr.rows import encode_rows, training_rows
from safetune.hgr.training import teacher_targets
from safetune.hgr.validation import (
    Convergence,
    alarm_of,
    prepare_held_out,
    summarise,
    validation_draws,
    validation_sums,
)
from safetune.prompts import PromptRow

ROWS = training_rows(
    [
        PromptRow(1, "a cat with a knife in the forest", "a cat in the forest", ("weapons",), "knife"),
        PromptRow(2, "a dog in the city", "a dog in the city"),
        PromptRow(3, "a bomb", None, ("explosives",)),
    ]
)


def test_draws_are_spread_over_each_kind() -> None:
    harmful = torch.tensor([True, False, True, True, True, False])
    timesteps, seeds = validation_draws(harmful, 200, seed=0)
    assert timesteps[harmful].tolist() == [300, 500, 700, 900]
    assert timesteps[~harmful].tolist() == [400, 800]
    assert validation_draws(harmful, 200, seed=0)[1] == seeds != validation_draws(harmful, 200, seed=1)[1]


def test_sums_by_hand_in_any_batches_and_shares(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    encoded, null = encode_rows(backbone, ROWS), backbone.null()
    torch.manual_seed(0)
    hgr, latents = HGR(128, 24, width=16, heads=2), torch.randn(3, 4, 16, 16)
    torch.nn.init.normal_(hgr.project_out.weight)
    timesteps, seeds = torch.tensor([300, 500, 700]), [4, 5, 6]

    def sums(rows: list[int], batch_size: int) -> torch.Tensor:
        held = prepare_held_out(
            backbone,
            encoded,
            torch.tensor(rows, dtype=torch.long),
            latents[rows],
            timesteps[rows],
            [seeds[row] for row in rows],
            guidance_scale=5.0,
            strength=1.5,
            weight_cap=50.0,
            batch_size=batch_size,
        )
        return validation_sums(hgr, backbone, held, null)

    whole = sums([0, 1, 2], 8)
    torch.testing.assert_close(sums([0, 1, 2], 2), whole)
    torch.testing.assert_close(sums([0, 2], 1) + sums([1], 2) + sums([], 2), whole)

    expected = torch.zeros(2, 5)
    for row in range(3):
        t, noise = timesteps[row : row + 1], seeded_noise((4, 16, 16), [seeds[row]])
        noisy = backbone.add_noise(latents[row : row + 1], noise, t)
        prompts, positives, negatives, harmful = encoded.batch(torch.tensor([row]), torch.device("cpu"))
        target, eps_null = teacher_targets(
            backbone, noisy, t, positives, negatives, null, harmful, 5.0, strength=1.5
        )
        eps = backbone.predict(noisy, t, shift(null, hgr.delta(prompts)))
        weight = signal_weight(t, backbone.alphas_cumprod, 50.0)
        expected[0 if harmful else 1] += torch.tensor(
            [
                1.0,
                (weight * (eps - target).pow(2).mean()).item(),
                (weight * (eps_null - target).pow(2).mean()).item(),
                (eps - eps_null).norm().item(),
                (target - eps_null).norm().item(),
            ]
        )
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-3)


def test_summary_by_hand() -> None:
    sums = torch.tensor([[2.0, 4.0, 8.0, 6.0, 10.0], [4.0, 2.0, 0.0, 1.0, 0.0]])
    values = {name: value.item() for name, value in summarise(sums, clean_weight=4.0).items()}
    assert values == {
        "loss": 2.0 + 4 * 0.5,
        "harmful_error": 2.0,
        "clean_error": 0.5,
        "residual": 0.5,
        "hed_harmful": 3.0,
        "hed_clean": 0.25,
        "hed_gap": 12.0,
        "target_length": 5.0,
    }
    untrained = summarise(torch.tensor([[1.0, 2.0, 2.0, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0, 0.0]]), 4.0)
    assert untrained["residual"] == 1 and untrained["hed_gap"] == 0


def test_alarm() -> None:
    assert alarm_of(0.05, 1.0, 100) == ""
    assert "step 100: the redirector changes nothing" in alarm_of(0.009, 1.0, 100)
    assert alarm_of(0.0, 0.0, 1) and alarm_of(math.nan, 1.0, 1)


@pytest.mark.parametrize("resumed", [False, True])
def test_stops_after_so_many_validations_without_a_gain(resumed: bool) -> None:
    convergence, ends = Convergence(), []
    for loss in (1.0, 0.9, 0.895, 0.95, 0.88, 0.879, 0.878, 0.8715):
        ends.append(convergence.update(loss, patience=3))
        if resumed:
            convergence, state = Convergence(), convergence.state_dict()
            convergence.load_state_dict(state)
    assert ends == [False] * 7 + [True]
    assert convergence.best == 0.88


def test_no_patience_never_stops() -> None:
    convergence = Convergence()
    assert not any(convergence.update(1.0, patience=0) for _ in range(20))
