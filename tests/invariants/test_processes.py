"""However a run is spread over processes, killed and resumed, it computes the same."""

import json
import signal
import time
from pathlib import Path

import pytest

from recipes import finetune
from safetune.checkpoints import last_checkpoint
from tests.invariants.conftest import Runs
from tests.invariants.launched import FILES, kill, launch, start
from tests.recipes.conftest import run_recipe
from tests.recipes.tuning import METHODS, assert_close_runs, assert_same_runs, result_of

SLOW = [pytest.param(mode, "lora", marks=pytest.mark.slow) for mode in FILES if mode != "ddp"]
FULL = [pytest.param(mode, "full", marks=pytest.mark.slow) for mode in ("ddp", "fsdp2", "zero2", "zero3")]


@pytest.mark.parametrize(("mode", "method"), [("ddp", "lora"), *SLOW, *FULL])
def test_two_processes_are_one(alone: Runs, together: Runs, mode: str, method: str) -> None:
    one, two = alone(method), together(mode, method)
    assert_close_runs(one, two)
    if method == "lora":
        others = result_of(two)
        assert max((value - others[name]).abs().max() for name, value in result_of(one).items()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("mode", FILES)
def test_killed_in_a_save_two_processes_go_on_bit_for_bit(
    together: Runs, settings: dict[str, object], tmp_path: Path, mode: str
) -> None:
    run = tmp_path / "run"
    options = {**settings, **METHODS["lora"], "batch_size": 2, "output_dir": run}
    process = start(mode, options, tmp_path / "killed.log")
    try:
        while not (run / "checkpoints" / ".step-000004.tmp").exists():
            assert process.poll() is None, (tmp_path / "killed.log").read_text()[-5000:]
            time.sleep(0.001)
    finally:
        kill(process)
    assert last_checkpoint(run / "checkpoints")[0] == 2
    launch(mode, options)
    assert_same_runs(together(mode, "lora"), run)


@pytest.mark.slow
def test_sigterm_to_the_launcher_stops_both_processes_at_one_step(
    settings: dict[str, object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    steps = 1_000_000  # more than a fast machine takes before it hears of the signal
    options = {**settings, "steps": steps, "checkpoint_every": steps, "output_dir": run}
    process = start("ddp", options, tmp_path / "stopped.log")
    try:
        while not (run / "metrics.jsonl").is_file() or len(whole_lines(run / "metrics.jsonl")) < 3:
            assert process.poll() is None, (tmp_path / "stopped.log").read_text()[-5000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) != 0
    finally:
        kill(process)
    done = last_checkpoint(run / "checkpoints")[0]
    assert 3 <= done < steps and done == len(whole_lines(run / "metrics.jsonl"))


def whole_lines(path: Path) -> list[dict[str, float]]:
    """The rows of a file of JSON lines that another process writes."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_sigterm_saves_and_leaves_with_its_status(
    alone: Runs, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**settings, **METHODS["lora"], "checkpoint_every": 100, "output_dir": tmp_path / "run"}
    log = finetune.Metrics.log

    def log_and_signal(self: finetune.Metrics, step: int, *rest: object, **more: object) -> dict[str, float]:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return log(self, step, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
        patched.setattr(finetune.Metrics, "log", log_and_signal)
        run_recipe(finetune, options, patched)
    assert left.value.code == 143
    assert last_checkpoint(tmp_path / "run" / "checkpoints")[0] == 3
    assert not (tmp_path / "run" / "adapter").exists()
    run_recipe(finetune, options, monkeypatch)
    assert_same_runs(alone("lora"), tmp_path / "run")
