"""metrics.jsonl: rows count alike wherever they stood, nothing hangs on the clock; trackers get it too."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from safetune.runs import Metrics, peak_memory, start_tracker

Make = Callable[..., Accelerator]


@pytest.fixture
def make() -> Make:
    """A function that makes an Accelerator."""
    return lambda **options: Accelerator(cpu=True, **options)


def two_processes(other: list[float]) -> Any:
    """The main one of two processes; the other brings these numbers to each reduction."""

    def reduce(tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return tensor + torch.tensor(other)

    return SimpleNamespace(
        is_main_process=True,
        num_processes=2,
        device=torch.device("cpu"),
        reduce=reduce,
        log=lambda *_, **__: 0,
    )


def test_rows_count_alike_and_scalars_are_averaged(tmp_path: Path) -> None:
    """Here 1 harmful row of error 4, there 3 of errors 1 + 1 + 2: their mean is 2, not that of 4 and 4/3."""
    metrics = Metrics(two_processes([1.0 / 2, 4.0, 3.0, 0.0, 0.0]), tmp_path / "metrics.jsonl", 0)
    values = metrics.log(
        3,
        {"grad_norm": torch.tensor(2.0)},
        {
            "harmful_error": (torch.tensor(4.0), torch.tensor(1)),
            "clean_error": (torch.tensor(0.0), torch.tensor(0)),
        },
        lr=0.5,
    )
    assert values == {"grad_norm": 1.5, "harmful_error": 2.0, "lr": 0.5}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, **values}


def test_one_reduction_a_step(tmp_path: Path) -> None:
    shapes = []
    accelerator = two_processes([0.0] * 5)
    add = accelerator.reduce
    accelerator.reduce = lambda tensor, reduction: (shapes.append(tensor.shape), add(tensor, reduction))[1]
    pair = (torch.tensor(1.0), torch.tensor(1))
    Metrics(accelerator, tmp_path / "m.jsonl", 0).log(0, {"a": torch.tensor(1.0)}, {"b": pair, "c": pair})
    assert shapes == [(5,)]


def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(make: Make, tmp_path: Path) -> None:
    accelerator = make()

    def train(path: Path, first: int, last: int) -> None:
        metrics = Metrics(accelerator, path, first)
        for step in range(first, last):
            metrics.log(step, {"loss": torch.tensor(1.0 / (step + 1))}, pairs=8, lr=0.1 * step)

    train(tmp_path / "straight.jsonl", 0, 5)
    train(tmp_path / "killed.jsonl", 0, 4)
    with (tmp_path / "killed.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    train(tmp_path / "killed.jsonl", 2, 5)
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    train(tmp_path / "killed.jsonl", 0, 1)
    assert len((tmp_path / "killed.jsonl").read_text().splitlines()) == 1


def test_speed_and_memory_are_shown_but_not_written(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 3.0, 7.0])
    monkeypatch.setattr("safetune.runs.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("safetune.runs.peak_memory", lambda device: 3 * 2**29)
    metrics = Metrics(make(), tmp_path / "metrics.jsonl", 0)
    assert metrics.summary() == {"pairs_per_second": None, "peak_memory": 3 * 2**29}
    one = torch.tensor(1)
    for step in range(3):
        shown = metrics.log(step, {}, {"loss": (torch.tensor(0.25), one)}, pairs=8)
    assert metrics.rates == [4.0, 8.0, 2.0]
    assert metrics.postfix(shown) == {"loss": "0.2500", "pairs/s": "2.0", "memory": "1.5G"}
    assert metrics.summary() == {"pairs_per_second": 4.0, "peak_memory": 3 * 2**29}
    assert '{"step": 2, "loss": 0.25}\n' in (tmp_path / "metrics.jsonl").read_text()


def test_peak_memory_sees_an_array_that_is_gone() -> None:
    before = peak_memory(torch.device("cpu"))
    assert 50 * 2**20 < before < 2**37
    np.ones(before // 8 + 2**23)  # 64 MiB more than was ever held
    assert peak_memory(torch.device("cpu")) >= before + 2**25


def test_tensorboard_shows_every_number_and_forgets_what_a_killed_run_showed(
    make: Make, tmp_path: Path
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = make(log_with="tensorboard", project_dir=tmp_path)
    for first, last in ((0, 3), (2, 4)):
        accelerator.trackers = []
        start_tracker(accelerator, "safetune", tmp_path, {"lr": 0.1, "labels": None, "data": tmp_path}, first)
        metrics = Metrics(accelerator, tmp_path / "metrics.jsonl", first)
        for step in range(first, last):
            metrics.log(step, {"loss": torch.tensor(float(first))}, pairs=4, lr=0.5)
        Metrics(accelerator, tmp_path / "validation.jsonl", 0, "validation/").write(last, {"harm_rate": 0.25})
        accelerator.trackers[0].finish()
    found = events.EventAccumulator(str(tmp_path / "safetune")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(0, 0), (1, 0), (2, 2), (3, 2)]
    names = {"loss", "lr", "pairs_per_second", "memory_gib", "validation/harm_rate"}
    assert set(found.Tags()["scalars"]) >= names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_stay_on_this_machine(
    name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network is needed, and what is written lies in the run folder or in the tracker's own."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = pytest.importorskip(name)
    accelerator = make(log_with=name, project_dir=tmp_path)
    start_tracker(accelerator, "safetune-test", tmp_path, {"lr": 0.1, "labels": None}, 0)
    metrics = Metrics(accelerator, tmp_path / "metrics.jsonl", 0)
    for step in range(2):
        metrics.log(step, {"loss": torch.tensor(1.0)}, pairs=4)
    accelerator.end_training()
    if name == "wandb":
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    else:
        assert list((tmp_path / "trackio").glob("safetune-test*"))
        assert [run.name[: len(tmp_path.name)] for run in tracker.Api().runs("safetune-test")] == [
            tmp_path.name
        ]


def test_no_tracker_is_no_error(make: Make, tmp_path: Path) -> None:
    accelerator = make()
    start_tracker(accelerator, "safetune", tmp_path, {}, 0)
    Metrics(accelerator, tmp_path / "metrics.jsonl", 0).log(0, {"loss": torch.tensor(1.0)})
    assert accelerator.trackers == []
