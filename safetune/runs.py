"""What every run writes beside its weights: run.json, metrics.jsonl and what a tracker shows."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from safetune.files import write_json, write_text

PACKAGES = (
    "safetune-diffusion",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "deepspeed",
)


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


def start_tracker(
    accelerator: Accelerator, project: str, folder: Path, config: Mapping[str, object], first_step: int
) -> None:
    """Open the trackers that the Accelerator was made with, if any; every process calls it.

    Nothing leaves the machine: W&B is offline unless WANDB_MODE says otherwise, trackio writes to its own
    folder. TensorBoard forgets what a killed run showed of `first_step` and later; the others open a new run.
    """
    if not accelerator.log_with:
        return
    options = {
        "tensorboard": {"purge_step": first_step},
        "wandb": {"name": folder.name, "dir": str(folder), "mode": os.environ.get("WANDB_MODE", "offline")},
        "trackio": {"name": f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}", "embed": False},
    }
    plain = {name: value if isinstance(value, int | float) else str(value) for name, value in config.items()}
    accelerator.init_trackers(project, config=plain, init_kwargs=options)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on the GPU what PyTorch allocated, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Metrics:
    """Numbers per step, one for all processes: appended to JSON lines by the main one, and shown by trackers.

    A run that goes on from `first_step` keeps the lines of the steps before it. Nothing in the file hangs on
    the clock, so that a resumed run's equals an uninterrupted one's byte for byte: pairs/s and memory go to
    the bar, the trackers and `summary` alone. `prefix` stands before the names that trackers show.
    """

    def __init__(self, accelerator: Accelerator, path: Path, first_step: int, prefix: str = "") -> None:
        self.accelerator, self.path, self.prefix = accelerator, path, prefix
        self.rates: list[float] = []
        self.last = time.perf_counter()
        if accelerator.is_main_process:
            lines = path.read_text().splitlines(keepends=True) if path.is_file() and first_step else []
            # A killed run can leave half a line.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first_step]
            write_text(path, "".join(kept))

    def log(
        self,
        step: int,
        scalars: Mapping[str, Tensor],
        sums: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        pairs: int = 0,
        lr: float | None = None,
    ) -> dict[str, float]:
        """Returns what stands in the line: scalars averaged, sums divided by their counts, in one reduction.

        `sums` holds a name's sum over rows and their number, of this process in all its passes, so that every
        row counts alike; a name without any row is left out. `pairs` is the step's number in all processes.
        """
        sums = sums or {}
        parts = [value / self.accelerator.num_processes for value in scalars.values()]
        parts += [part for pair in sums.values() for part in pair]
        stacked = torch.stack([part.detach().to(self.accelerator.device, torch.float32) for part in parts])
        added = self.accelerator.reduce(stacked, reduction="sum").tolist()
        values = dict(zip(scalars, added, strict=False))
        totals, counts = added[len(scalars) :: 2], added[len(scalars) + 1 :: 2]
        values |= {
            name: total / count for name, total, count in zip(sums, totals, counts, strict=True) if count
        }
        if lr is not None:
            values["lr"] = lr
        self.write(step, values, self._pace(pairs))
        return values

    def write(self, step: int, values: Mapping[str, float], shown: Mapping[str, float] | None = None) -> None:
        """A line of values that are the same on every process; trackers are told what is `shown` besides."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        told = {self.prefix + name: value for name, value in {**values, **(shown or {})}.items()}
        self.accelerator.log(told, step=step)

    def postfix(self, values: Mapping[str, float]) -> dict[str, str]:
        """What the progress bar shows of a line: loss, its harmful and clean part, pairs/s, peak memory."""
        names = {"loss": "loss", "harmful_error": "harm", "clean_error": "clean"}
        shown = {short: f"{values[name]:.4f}" for name, short in names.items() if name in values}
        if self.rates:
            shown["pairs/s"] = f"{self.rates[-1]:.1f}"
        return {**shown, "memory": f"{peak_memory(self.accelerator.device) / 2**30:.1f}G"}

    def summary(self) -> dict[str, float | int | None]:
        """For run.json: the median of pairs/s over the steps, and the main process's peak memory in bytes."""
        median = round(statistics.median(self.rates), 2) if self.rates else None
        return {"pairs_per_second": median, "peak_memory": peak_memory(self.accelerator.device)}

    def _pace(self, pairs: int) -> dict[str, float]:
        """Pairs per second since the last line, and peak memory, where the step's pairs are told."""
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        if not pairs:
            return {}
        self.rates.append(pairs / elapsed)
        memory = peak_memory(self.accelerator.device) / 2**30
        return {"pairs_per_second": self.rates[-1], "memory_gib": memory}
