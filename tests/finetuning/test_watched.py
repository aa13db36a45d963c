"""Guard, alarm and validation say the same whether one process trains or several, sharded or not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODES = {"ddp": "cpu_ddp", "fsdp2": "fsdp2", "zero2": "zero2", "zero3": "zero3"}
"""Launch file of each mode."""


def run(command: list[str], repository: Path, folder: Path, processes: int) -> list[dict[str, Any]]:
    """What each process found."""
    folder.mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(repository),
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, repository: Path, tiny_pipeline: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("single") / "run"
    command = [sys.executable, "tests/finetuning/watched.py", str(tiny_pipeline), str(folder)]
    (found,) = run(command, repository, folder, 1)
    return found


@pytest.mark.slow
def test_one_process(single: dict[str, Any]) -> None:
    assert single["before"]["weight_change"] == 0 and not single["before"]["changed"]
    assert single["after"]["weight_change"] > 0.1 and single["after"]["changed"]
    assert single["rates"]["harmful_change"] > 0 and single["rates"]["clean_change"] > 0
    assert (
        single["error"].startswith("step 2: the loss of 1 of 2 pairs") and "Keys: 0-1.png." in single["error"]
    )
    assert single["unspoiled"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes(
    mode: str, single: dict[str, Any], tmp_path: Path, repository: Path, tiny_pipeline: Path
) -> None:
    if mode.startswith("zero"):
        pytest.importorskip("deepspeed")
    folder = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"launch/{MODES[mode]}.yaml",
    ]
    here = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    script = ["tests/finetuning/watched.py", str(tiny_pipeline), str(folder)]
    one, other = run([*launcher, *here, *script], repository, folder, 2)
    assert one == other
    assert one["before"] == single["before"]
    for name in ("weight_change", "prediction_change"):
        assert one["after"][name] == pytest.approx(single["after"][name], rel=1e-3)
    for name, rate in single["rates"].items():
        assert one["rates"][name] == pytest.approx(rate, abs=2e-4), name
    assert one["error"].startswith("step 2: the loss of 1 of 4 pairs") and "Keys: 1-1.png." in one["error"]
    assert one["unspoiled"]
