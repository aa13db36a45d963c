"""What every run writes beside its weights: run.json and metrics.jsonl."""

import atexit
import gc
import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from safetune.files import write_json, write_text

PACKAGES = ("safetune-diffusion", "torch", "diffusers", "transformers", "peft", "accelerate", "datasets")


def check_world_size(accelerator: Accelerator) -> None:
    """RuntimeError when the launcher started several processes that do not know of each other.

    Also registers the exit hook without which gloo can abort a process that has finished its work.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched but each sees {accelerator.num_processes}: on CPUs use a "
            "launch file with distributed_type MULTI_GPU and ACCELERATE_USE_CPU=true, see launch/cpu_ddp.yaml"
        )
    atexit.register(_leave_process_group)


def _leave_process_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()
        time.sleep(0.2)


def versions() -> dict[str, str]:
    """Installed versions of what shapes a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str:
    """The checkout's commit, or "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def write_run(
    folder: Path,
    config: dict[str, Any],
    accelerator: Accelerator,
    data_fingerprint: str,
    seconds: float,
    **outcome: object,
) -> None:
    """Write run.json: config, accelerate state, data fingerprint, versions, commit, seconds, outcome."""
    state = {
        "distributed_type": str(accelerator.distributed_type),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "device": str(accelerator.device),
    }
    facts = {
        "config": config,
        "accelerate": state,
        "data_fingerprint": data_fingerprint,
        "versions": versions(),
        "commit": git_commit(),
        "seconds": round(seconds, 1),
        **outcome,
    }
    write_json(folder / "run.json", facts)


class Metrics:
    """Scalars per step, averaged over processes, appended to a file of JSON lines by the main one.

    A run that goes on from `first_step` keeps the lines of the steps before it.
    """

    def __init__(self, accelerator: Accelerator, path: Path, first_step: int) -> None:
        self.accelerator, self.path = accelerator, path
        if accelerator.is_main_process:
            lines = path.read_text().splitlines(keepends=True) if path.is_file() and first_step else []
            # A killed run can leave half a line.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first_step]
            write_text(path, "".join(kept))

    def log(self, step: int, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Returns the averaged values."""
        stacked = torch.stack([value.detach().float() for value in scalars.values()])
        averaged = self.accelerator.reduce(stacked, reduction="mean").tolist()
        values = dict(zip(scalars, averaged, strict=True))
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        return values
