"""The fine-tuning recipe under `accelerate launch`, with two processes over gloo and the files of launch/."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent.parent
FILES = {"ddp": "cpu_ddp", "fsdp2": "fsdp2", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3"}
"""Launch file of each mode."""


def start(mode: str, settings: Mapping[str, object], log: Path) -> subprocess.Popen[bytes]:
    """Two processes on this machine, with a launch file made for eight GPUs."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    config = ["--config_file", f"launch/{FILES[mode]}.yaml"]
    here = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    words = [f"--{name}={value}" for name, value in settings.items()]
    command = [*launcher, *config, *here, "recipes/finetune.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)


def launch(mode: str, settings: Mapping[str, object]) -> None:
    """Train with two processes to the end."""
    log = Path(f"{settings['output_dir']}.log")
    process = start(mode, settings, log)
    try:
        status = process.wait(timeout=300)
    finally:
        kill(process)
    assert status == 0, log.read_text()[-5000:]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the launcher and its processes, as when a machine goes down."""
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for running in [*launcher.children(recursive=True), launcher]:
            running.kill()
        process.wait()
