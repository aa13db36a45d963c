"""Every file in launch/ is one that accelerate or bash takes, and its header holds a command that works."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from recipes.train_hgr import HGRConfig
from safetune.config import parse_config
from safetune.finetuning.config import FinetuneConfig

LAUNCH = Path(__file__).parent.parent / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))
SLURM = LAUNCH / "slurm.sh"
EXPECTED = {
    "cpu": ("NO", 1, "no", True, 0),
    "cpu_ddp": ("MULTI_GPU", 2, "no", True, 0),
    "single_gpu": ("NO", 1, "bf16", False, 0),
    "ddp": ("MULTI_GPU", 8, "bf16", False, 0),
    "multi_node": ("MULTI_GPU", 16, "bf16", False, 0),
    "fsdp2": ("FSDP", 8, "bf16", False, 0),
    "zero1": ("DEEPSPEED", 8, "bf16", False, 1),
    "zero2": ("DEEPSPEED", 8, "bf16", False, 2),
    "zero2_offload": ("DEEPSPEED", 2, "bf16", False, 2),
    "zero3": ("DEEPSPEED", 8, "bf16", False, 3),
}
"""Kind, processes, precision, whether on the CPU, and ZeRO stage."""
FAKES = {
    "scontrol": """
if [ "$1 $2" = "show hostnames" ]; then echo gpu1; echo gpu2; else echo "$@" >> "$TOLD"; fi
""",
    "srun": """
shift # its own option
exec "$@"
""",
    "accelerate": """
if [ "$STATUS" = wait ]; then
    trap 'echo saved >> "$TOLD"; exit 143' TERM
    echo launched > "$TOLD"
    while true; do sleep 0.05; done
fi
printf '%s\\n' "$@" > "$TOLD"
exit "$STATUS"
""",
}
"""Stand-ins for SLURM's commands and accelerate."""
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


def command_of(path: Path) -> list[str]:
    """The words of the command in a file's header."""
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    (command,) = [line.removeprefix("#").strip() for line in header if line.startswith("#   ")]
    return shlex.split(command)


def launched_by(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """What `accelerate launch WORDS` makes of its options and file; the recipe takes its own options."""
    monkeypatch.chdir(LAUNCH.parent)
    options = launch_command_parser().parse_args(words)
    defaults, _, _ = _validate_launch_command(options)
    recipe = {"finetune.py": FinetuneConfig, "train_hgr.py": HGRConfig}[Path(defaults.training_script).name]
    assert Path(defaults.training_script).is_file()
    parse_config(recipe, "", defaults.training_script_args)  # an unknown option exits
    return defaults


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_in_the_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_of(path)
    start = command.index("accelerate")
    assert command[start : start + 4] == ["accelerate", "launch", "--config_file", f"launch/{path.name}"]
    assert set(command[:start]) <= {"ACCELERATE_USE_CPU=true"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the files speak of GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    options = launched_by(command[start + 2 :], monkeypatch)
    distributed, processes, precision, _, stage = EXPECTED[path.stem]
    assert (options.num_processes, options.mixed_precision) == (processes, precision)
    assert options.multi_gpu is (distributed == "MULTI_GPU")
    assert options.use_fsdp is (distributed == "FSDP")
    assert options.use_deepspeed is (distributed == "DEEPSPEED")
    if stage:
        assert int(options.zero_stage) == stage


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_settings(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    keys = ("distributed_type", "num_processes", "mixed_precision", "use_cpu")
    stage = values.get("deepspeed_config", {}).get("zero_stage", 0)
    assert (*(values[key] for key in keys), stage) == EXPECTED[path.stem]


def test_cpu_ddp_starts_two_processes_that_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "show_world.py"
    script.write_text(SHOW_WORLD)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", LAUNCH / "cpu_ddp.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, script], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert sorted(re.findall(r"rank \d of \d", result.stdout)) == ["rank 0 of 2", "rank 1 of 2"]


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a SLURM job on the first of two machines; its commands write what they are told."""
    for name, script in FAKES.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + script)
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_NODELIST": "gpu[1-2]",
        "SLURM_JOB_ID": "12345",
        "SLURM_NODEID": "0",
        "TOLD": str(tmp_path / "told"),
    }
    return {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_slurm_launches_the_recipe_of_its_header(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    command = command_of(SLURM)
    assert command[:4] == ["sbatch", "--nodes", "2", "launch/slurm.sh"]
    result = subprocess.run([SLURM, *command[4:]], env={**cluster, "STATUS": "7"}, check=False, timeout=60)
    assert result.returncode == 7  # the recipe's
    launcher, *words = Path(cluster["TOLD"]).read_text().splitlines()
    assert launcher == "launch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    options = launched_by(words, monkeypatch)
    assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 16, 0)
    assert (options.main_process_ip, options.main_process_port) == ("gpu1", 32345)


def test_slurm_queues_again_what_its_time_limit_stops(cluster: dict[str, str]) -> None:
    job = subprocess.Popen([SLURM, "recipes/finetune.py"], env={**cluster, "STATUS": "wait"})
    while not Path(cluster["TOLD"]).is_file():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert Path(cluster["TOLD"]).read_text().splitlines()[-2:] == ["saved", "requeue 12345"]
