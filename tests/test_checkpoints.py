"""Checkpoints: the newest whole one counts, old ones go, and nothing half-written is ever taken for one."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from safetune.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint, whole_checkpoints


def prepared(seed: int = 0) -> tuple[Accelerator, nn.Sequential, torch.optim.Optimizer]:
    """An accelerator with a model whose first layer is frozen, and its AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer)


def step(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step on random numbers; returns them."""
    numbers = torch.randn(4, 2)
    accelerator.backward(model(numbers).pow(2).mean())
    optimizer.step()
    optimizer.zero_grad()
    return numbers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_stay(tmp_path: Path) -> None:
    accelerator, _, _ = prepared()
    assert last_checkpoint(tmp_path) == (0, None)
    for done in (50, 100, 1_000_000):
        save_checkpoint(accelerator, tmp_path, done)
    assert names(tmp_path) == ["step-000100", "step-1000000"]
    assert last_checkpoint(tmp_path) == (1_000_000, tmp_path / "step-1000000")
    save_checkpoint(accelerator, tmp_path, 1_000_001, keep=1)
    assert names(tmp_path) == ["step-1000001"]


def test_weights_optimizer_and_random_numbers_come_back(tmp_path: Path) -> None:
    accelerator, model, optimizer = prepared()
    step(accelerator, model, optimizer)
    save_checkpoint(accelerator, tmp_path, 1)
    numbers = step(accelerator, model, optimizer)
    expected = model[1].weight.clone()

    AcceleratorState._reset_state(True)
    accelerator, model, optimizer = prepared()
    accelerator.step = 3
    assert load_checkpoint(accelerator, tmp_path) == 1
    assert accelerator.step == 0
    assert torch.equal(step(accelerator, model, optimizer), numbers)
    assert torch.equal(model[1].weight, expected)


def test_frozen_weights_are_neither_saved_nor_lost(tmp_path: Path) -> None:
    accelerator, model, optimizer = prepared()
    step(accelerator, model, optimizer)
    save_checkpoint(accelerator, tmp_path, 1)
    assert sorted(load_file(tmp_path / "step-000001" / "model.safetensors")) == ["1.bias", "1.weight"]
    trained = model[1].weight.clone()

    AcceleratorState._reset_state(True)
    accelerator, model, _ = prepared(seed=1)
    frozen = model[0].weight.clone()
    load_checkpoint(accelerator, tmp_path)
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(model[1].weight, trained)


@pytest.mark.parametrize("moment", ["save_state", "write_json", "rename"])
def test_a_cut_within_a_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    accelerator, model, optimizer = prepared()
    save_checkpoint(accelerator, tmp_path, 1)
    before = model[1].weight.clone()

    def cut(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    step(accelerator, model, optimizer)
    owner = {"save_state": Accelerator, "write_json": "safetune.checkpoints", "rename": Path}[moment]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            f"{owner}.{moment}" if isinstance(owner, str) else owner, *name_of(owner, moment), cut
        )
        save_checkpoint(accelerator, tmp_path, 2)
    assert names(tmp_path) == [".step-000002.tmp", "step-000001"]
    assert load_checkpoint(accelerator, tmp_path) == 1
    assert torch.equal(model[1].weight, before)
    save_checkpoint(accelerator, tmp_path, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def name_of(owner: object, moment: str) -> tuple[str, ...]:
    """Monkeypatch takes an object and a name, or one dotted name."""
    return () if isinstance(owner, str) else (moment,)


def test_a_cut_within_a_deletion_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator, _, _ = prepared()
    save_checkpoint(accelerator, tmp_path, 1, keep=1)

    def cut(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("safetune.checkpoints.shutil.rmtree", cut)
        save_checkpoint(accelerator, tmp_path, 2, keep=1)
    assert whole_checkpoints(tmp_path) == [tmp_path / "step-000002"]
    save_checkpoint(accelerator, tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-000003"]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    accelerator, _, _ = prepared()
    save_checkpoint(accelerator, tmp_path, 1)
    written = (tmp_path / "step-000001" / "model.safetensors").stat().st_mtime_ns
    save_checkpoint(accelerator, tmp_path, 1)
    assert (tmp_path / "step-000001" / "model.safetensors").stat().st_mtime_ns == written
    assert names(tmp_path) == ["step-000001"]


def test_other_facts_are_refused_by_name(tmp_path: Path) -> None:
    accelerator, _, _ = prepared()
    save_checkpoint(accelerator, tmp_path, 1, rank=16, data="abc", base=Path("here"))
    assert load_checkpoint(accelerator, tmp_path, rank=16, base=Path("here")) == 1
    with pytest.raises(
        ValueError, match=r"step-000001 was saved otherwise: rank was 16, is 8\. .*--output_dir"
    ):
        load_checkpoint(accelerator, tmp_path, rank=8, data="abc")


def test_another_number_of_processes_or_mode_is_refused(tmp_path: Path) -> None:
    accelerator, _, _ = prepared()
    save_checkpoint(accelerator, tmp_path, 1)
    facts = tmp_path / "step-000001" / "checkpoint.json"
    assert json.loads(facts.read_text()) == {"step": 1, "mode": "single", "processes": 1}
    facts.write_text(json.dumps({"step": 1, "mode": "zero2", "processes": 4}))
    with pytest.raises(ValueError, match="mode was zero2, is single; processes was 4, is 1"):
        load_checkpoint(accelerator, tmp_path)
