"""Every file in launch/ is a config that accelerate takes, and its header holds the command that uses it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

LAUNCH = Path(__file__).parent.parent / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))
EXPECTED = {
    "cpu": ("NO", 1, "no", True),
    "cpu_ddp": ("MULTI_GPU", 2, "no", True),
    "single_gpu": ("NO", 1, "bf16", False),
    "ddp": ("MULTI_GPU", 8, "bf16", False),
}
SHOW_WORLD = """
import os
from accelerate import Accelerator
accelerator = Accelerator()
print(f"rank {accelerator.process_index} of {accelerator.num_processes}", flush=True)
accelerator.wait_for_everyone()
os._exit(0)  # gloo can abort in Python's own shutdown
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_takes_it(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert values["compute_environment"] == "LOCAL_MACHINE"
    assert values["main_training_function"] == "main"
    assert values["mixed_precision"] in ("no", "fp16", "bf16")
    assert values["num_processes"] >= 1
    assert 0 <= values["machine_rank"] < values["num_machines"]
    assert isinstance(values["use_cpu"], bool)
    load_config_from_file(str(path))  # an unknown key is an error


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_holds_the_command(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(rf"accelerate launch --config_file launch/{path.name} .*recipes/\w+\.py", header)


@pytest.mark.parametrize("name", EXPECTED)
def test_settings(name: str) -> None:
    values = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    keys = ("distributed_type", "num_processes", "mixed_precision", "use_cpu")
    assert tuple(values[key] for key in keys) == EXPECTED[name]


def test_cpu_ddp_starts_two_processes_that_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "show_world.py"
    script.write_text(SHOW_WORLD)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", LAUNCH / "cpu_ddp.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, script], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert sorted(re.findall(r"rank \d of \d", result.stdout)) == ["rank 0 of 2", "rank 1 of 2"]
