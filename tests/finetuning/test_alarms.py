"""The guard against what is not finite, and the alarm of a run that changed nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from safetune.backbone import Backbone, load_backbone
from safetune.conditioning import Conditioning
from safetune.finetuning.adapters import add_lora, trainable
from safetune.finetuning.alarms import (
    SKIPPED_IN_A_ROW,
    ChangeAlarm,
    FiniteGuard,
    NonFiniteError,
    sample,
    without_dropout,
)

INFINITE = torch.tensor(float("inf"))


def alone(precision: str = "no", kind: DistributedType = DistributedType.NO) -> Any:
    """An accelerator of one process, of any precision and kind."""
    return SimpleNamespace(
        mixed_precision=precision, distributed_type=kind, reduce=lambda tensor, reduction: tensor
    )


def test_an_error_names_the_step_and_the_keys_of_bad_rows() -> None:
    guard = FiniteGuard(alone())
    guard.watch(6, torch.tensor([1.0, 2.0]), ["a.png", "b.png"])
    guard.watch(6, torch.tensor([float("nan"), 1.0, float("inf")]), ["c.png", "d.png", "e.png"])
    with pytest.raises(
        NonFiniteError, match=r"^step 6: the loss of 2 of 5 pairs .* Keys: c.png, e.png\. Nothing"
    ):
        guard.check(6, INFINITE)


def test_rows_of_earlier_steps_are_forgotten() -> None:
    guard = FiniteGuard(alone())
    guard.watch(0, torch.tensor([1.0]), ["a.png"])
    guard.check(0, torch.tensor(0.5))
    guard.watch(1, torch.tensor([1.0]), ["b.png"])
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient is infinite .* Keys: b.png\."):
        guard.check(1, INFINITE)


def test_many_keys_are_counted() -> None:
    guard = FiniteGuard(alone())
    guard.watch(0, torch.full((20,), float("nan")), [f"{number}.png" for number in range(20)])
    with pytest.raises(NonFiniteError, match=r"Keys: 0.png, 1.png, .*, 7.png and 12 more\."):
        guard.check(0, INFINITE)


def test_fp16_may_overflow_now_and_then() -> None:
    guard, fine = FiniteGuard(alone("fp16")), torch.tensor([1.0])
    for step in range(3 * SKIPPED_IN_A_ROW + 1):
        guard.watch(step, fine, ["a.png"])
        guard.check(step, INFINITE if step % 2 else torch.tensor(1.0))
    assert guard.skipped == 3 * SKIPPED_IN_A_ROW / 2
    with pytest.raises(NonFiniteError, match=f"{SKIPPED_IN_A_ROW} steps in a row.* --mixed_precision bf16"):
        for step in range(SKIPPED_IN_A_ROW):
            guard.watch(step, fine, ["a.png"])
            guard.check(step, INFINITE)
    assert guard.skipped == 3 * SKIPPED_IN_A_ROW / 2 + SKIPPED_IN_A_ROW


def test_no_loss_scale_mends_a_bad_loss() -> None:
    guard = FiniteGuard(alone("fp16"))
    guard.watch(0, torch.tensor([float("nan")]), ["a.png"])
    with pytest.raises(NonFiniteError, match="the loss of 1 of 1 pairs"):
        guard.check(0, INFINITE)


def test_deepspeed_steps_in_the_backward_so_it_is_told_before() -> None:
    guard = FiniteGuard(alone(kind=DistributedType.DEEPSPEED))
    guard.watch(2, torch.tensor([1.0]), ["a.png"])
    with pytest.raises(NonFiniteError, match=r"step 2: the loss of 1 of 2 pairs .* Keys: b.png\."):
        guard.watch(2, torch.tensor([float("nan")]), ["b.png"])


# ---- has anything changed? ----


class Scaled(nn.Module):
    """A denoiser whose output is `scale` everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, noisy: Tensor) -> Tensor:
        return torch.ones_like(noisy) * self.scale.float()


Alarm = tuple[ChangeAlarm, Scaled]


@pytest.fixture
def alarm() -> Alarm:
    """Outputs are 1 everywhere, targets 3: (2, 1, 2, 2) rows of length 2, a way of 4."""
    denoiser = Scaled()
    backbone = SimpleNamespace(predict=lambda noisy, t, prompts, denoiser: denoiser(noisy))
    rows = torch.zeros(2, 1, 2, 2), torch.zeros(2), Conditioning(torch.zeros(2, 1, 1))
    target = torch.full((2, 1, 2, 2), 3.0)
    accelerator = Accelerator(cpu=True)
    return ChangeAlarm(accelerator, backbone, [denoiser.scale], *rows, target, denoiser), denoiser  # type: ignore[arg-type]


def test_how_far_outputs_and_weights_moved(alarm: Alarm) -> None:
    watcher, denoiser = alarm
    denoiser.scale.data.fill_(1.5)
    report = watcher.report(denoiser)
    assert report == {"changed": True, "weight_change": 0.5, "prediction_change": 0.25, "alarm": None}


def test_nothing_moved(alarm: Alarm) -> None:
    report = alarm[0].report(alarm[1])
    assert (report["changed"], report["weight_change"], report["prediction_change"]) == (False, 0.0, 0.0)
    assert "no trained weight moved" in str(report["alarm"]) and "--base_dtype float32" in str(
        report["alarm"]
    )


@pytest.mark.parametrize("scale", [1.01, float("nan")])
def test_moved_too_little_or_to_nowhere(alarm: Alarm, scale: float) -> None:
    watcher, denoiser = alarm
    denoiser.scale.data.fill_(scale)
    report = watcher.report(denoiser)
    assert not report["changed"] and "outputs for harmful prompts moved by" in str(report["alarm"])


def test_of_large_weights_a_sample_is_kept() -> None:
    weight = nn.Parameter(torch.arange(5000.0).view(50, 100))
    assert sample(weight).tolist() == list(range(0, 4096, 4))
    assert sample(nn.Parameter(torch.arange(3.0))).tolist() == [0, 1, 2]
    kept = sample(weight)
    weight.data.add_(1)
    assert kept[1] == 4


def with_lora(pipeline: Path, dropout: float) -> Backbone:
    backbone = load_backbone(pipeline)
    add_lora(backbone.denoiser, 4, 4.0, "attention", dropout=dropout)
    return backbone


def test_a_lora_with_dropout_is_asked_without(tiny_pipeline: Path) -> None:
    backbone = with_lora(tiny_pipeline, dropout=0.5)
    prompts = backbone.encode_prompts(["a cat", "a dog"])
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([300, 700])
    params = trainable(backbone.denoiser)
    watcher = ChangeAlarm(
        Accelerator(cpu=True),
        backbone,
        params,
        noisy,
        t,
        prompts,
        torch.randn(2, 4, 16, 16),
        backbone.denoiser,
    )
    backbone.denoiser.train()
    for param in params:
        nn.init.normal_(param, std=0.3)
    first, second = watcher.report(backbone.denoiser), watcher.report(backbone.denoiser)
    assert first == second and first["changed"]
    assert backbone.denoiser.training and all(module.training for module in backbone.denoiser.modules())


def test_dropout_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval())
    with pytest.raises(KeyError), without_dropout(model):
        assert torch.equal(model(torch.ones(1000)), torch.ones(1000)) and model.training
        raise KeyError
    assert [module.training for module in model] == [True, False]
