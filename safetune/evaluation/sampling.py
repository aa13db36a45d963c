"""Pictures of every condition, cell and seed, by plain diffusers in processes that never import safetune."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.evaluation.suites import Cell
from safetune.files import write_json
from safetune.guidance import safecfg_negative
from safetune.hgr import HGR
from safetune.precision import fast_dtype

SAMPLER = Path(__file__).with_name("plain_sampler.py")


@dataclass(frozen=True)
class SamplingOptions:
    """What every picture of an evaluation is made with; part of the protocol."""

    steps: int = 10
    guidance_scale: float = 5.0
    dtype: str = "auto"
    """float32, bfloat16 or float16; auto becomes what the hardware is fast in."""
    batch_size: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    processes: int = 0
    """Sampler processes at a time, one thread each; 0: one for each core up to 8, one in all on a GPU."""

    def __post_init__(self) -> None:
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", str(fast_dtype()).removeprefix("torch."))

    def process_count(self) -> int:
        """The number of sampler processes that `processes` stands for here."""
        if self.processes:
            return self.processes
        return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)


def picture_seed(seed: int, cell: Cell, row: int) -> int:
    """Seed of one picture: equal across conditions, so that columns of a grid can be compared."""
    return int(np.random.SeedSequence([seed, sum(cell.name.encode()), row]).generate_state(1)[0])


def sample_condition(
    name: str, base: str, cells: Sequence[Cell], folder: Path, options: SamplingOptions,
    adapter: Path | None = None, hgr: HGR | None = None, backbone: Backbone | None = None,
) -> list[Path]:  # fmt: skip
    """Write the jobs of one condition; returns their paths. With an HGR each prompt gets its own negative."""
    jobs = []
    weights_hash = file_sha256([*Path(base).glob("*/*.safetensors"), *([adapter] if adapter else [])])
    for cell in cells:
        negative, negative_hash = None, ""
        if hgr is not None and backbone is not None:
            negative = folder / name / f"{cell.name}.negative.safetensors"
            negative.parent.mkdir(parents=True, exist_ok=True)
            embeds = safecfg_negative(backbone, hgr, cell.prompts).embeds
            save_file({"embeds": embeds.contiguous()}, negative)
            negative_hash = file_sha256([negative])
        for seed in options.seeds:
            job = folder / name / f"{cell.name}-{seed}.json"
            write_job(
                job,
                {
                    "base": base,
                    "adapter": None if adapter is None else str(adapter),
                    "weights_sha256": weights_hash,
                    "negative_embeds": None if negative is None else str(negative),
                    "negative_sha256": negative_hash,
                    "prompts": cell.prompts,
                    "seeds": [picture_seed(seed, cell, row) for row in range(len(cell.prompts))],
                    "steps": options.steps,
                    "guidance_scale": options.guidance_scale,
                    "dtype": options.dtype,
                    "batch_size": options.batch_size,
                    "threads": 1,
                    "out": str(job.with_suffix(".npy")),
                },
            )
            jobs.append(job)
    return jobs


def write_job(path: Path, job: dict[str, object]) -> None:
    """Write a job; the pictures of another job of that name are removed, those of the same job stay."""
    if path.is_file() and json.loads(path.read_text()) != job:
        path.with_suffix(".npy").unlink(missing_ok=True)
    write_json(path, job)


def file_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the files' contents, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_jobs(jobs: Sequence[Path], processes: int) -> None:
    """Run the jobs without output, spread over processes; RuntimeError with the sampler's last words."""
    missing = [job for job in jobs if not job.with_suffix(".npy").is_file()]
    if not missing:
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    workers = [
        subprocess.Popen(
            [sys.executable, str(SAMPLER), *map(str, missing[rank::processes])],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(min(processes, len(missing)))
    ]  # fmt: skip
    with tqdm(total=len(missing), desc="sample", unit="job") as bar:
        while any(worker.poll() is None for worker in workers):
            time.sleep(0.2)
            bar.update(sum(job.with_suffix(".npy").is_file() for job in missing) - bar.n)
    for worker in workers:
        if worker.returncode:
            words = worker.stderr.read() if worker.stderr else ""
            raise RuntimeError(f"the sampler failed with status {worker.returncode}: {words[-2000:]}")


def load_pictures(job: Path) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 of a finished job."""
    return np.asarray(np.load(job.with_suffix(".npy"), allow_pickle=False))
