"""Launch file and recipe must agree, and what is spread over processes comes back whole.

The runs of several processes are in tests/invariants.
"""

import os

import pytest
import torch
from torch import nn

from safetune.launching import build_accelerator, check_world_size, clip_gradients, full_state, mode, prepare
from safetune.precision import resolve_precision


@pytest.fixture(autouse=True)
def plain_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if started without a launcher on a machine without a GPU."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)


def test_the_recipe_decides_where_nothing_launched_it() -> None:
    accelerator = build_accelerator("bf16", accumulation=4)
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("bf16", 4)
    assert mode(accelerator) == "single"


@pytest.mark.parametrize(
    ("launched", "recipe", "expected"),
    [("bf16", "auto", "bf16"), ("bf16", "bf16", "bf16"), ("no", "bf16", "bf16"), ("no", "no", "no")],
)
def test_launch_file_and_recipe_agree(
    monkeypatch: pytest.MonkeyPatch, launched: str, recipe: str, expected: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert build_accelerator(recipe).mixed_precision == expected


def test_auto_asks_the_hardware_where_the_launch_file_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert build_accelerator("auto").mixed_precision == resolve_precision("auto")


def test_precisions_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(
        ValueError, match="launch file says mixed_precision: bf16, the recipe --mixed_precision no"
    ):
        build_accelerator("no")


@pytest.mark.parametrize("launched", ["fp16", "no"])
def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, launched: str) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(ValueError, match="fp16 needs a GPU: give --mixed_precision no"):
        build_accelerator("fp16")


def test_accumulations_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(
        ValueError, match="says gradient_accumulation_steps: 2, the recipe --accumulation 4: take"
    ):
        build_accelerator("no", accumulation=4)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetune.launching.get_available_trackers", lambda: [])
    with pytest.raises(
        ValueError, match=r"tracker wandb: not installed; pip install 'safetune-diffusion\[track\]'"
    ):
        build_accelerator("no", tracker="wandb")


def test_fsdp_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        build_accelerator("no")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "2",
            "gradient_accumulation_steps: 2, the recipe --accumulation 1",
        ),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "gradient_clipping: 0.5, the recipe --max_grad_norm 1.0"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0", "zero_stage 0: give 1, 2 or 3"),
        ("ACCELERATE_USE_CPU", "true", "turns DeepSpeed off: unset it"),
    ],
)
def test_a_deepspeed_file_that_disagrees(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, words: str
) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(setting, value)
    with pytest.raises(ValueError, match=words):
        build_accelerator("no", accumulation=1, max_grad_norm=1.0)


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = build_accelerator("no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were launched but each sees 1"):
        check_world_size(accelerator)


def test_gradients_are_scaled_down_to_the_norm() -> None:
    accelerator = build_accelerator("no")
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    params[0].grad, params[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    norm = clip_gradients(accelerator, params, 1.0)
    assert type(norm) is torch.Tensor and norm.item() == pytest.approx(5.0)
    assert [param.grad.item() for param in params] == pytest.approx([0.6, 0.8], abs=1e-5)


def test_full_state_holds_what_trains_or_what_is_named() -> None:
    accelerator = build_accelerator("no")
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    student, _ = prepare(accelerator, model, torch.optim.AdamW(model[1].parameters()))
    state = full_state(accelerator, student)
    assert sorted(state) == ["1.bias", "1.weight"]
    assert state["1.weight"].dtype == torch.float32 and not state["1.weight"].requires_grad
    with torch.no_grad():
        model[1].weight.fill_(7)
    assert state["1.weight"].tolist() == [1, 1]
    chosen = full_state(
        accelerator, student, lambda name: name in ("0.bias", "1.running_var", "1.num_batches_tracked")
    )
    assert {name: value.dtype for name, value in chosen.items()} == {
        "0.bias": torch.float32,
        "1.running_var": torch.float32,
        "1.num_batches_tracked": torch.int64,
    }
