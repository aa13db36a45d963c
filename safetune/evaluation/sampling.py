"""Pictures of every method, cell and seed, by diffusers in processes of their own that are made once."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning
from safetune.evaluation.baselines.concepts import concept_prompt
from safetune.evaluation.methods import Method
from safetune.evaluation.suites import Cell
from safetune.files import write_json
from safetune.guidance import safecfg_negative
from safetune.hgr import HGR
from safetune.precision import fast_dtype
from safetune.stages import processes_at_once

PLAIN = Path(__file__).with_name("plain_sampler.py")
GUIDED = Path(__file__).with_name("guided_sampler.py")
PICTURES = 64
"""Pictures of a job at most: what a killed run makes again."""


@dataclass(frozen=True)
class SamplingOptions:
    """What every picture of an evaluation is made with; part of the protocol."""

    steps: int = 10
    guidance_scale: float = 5.0
    dtype: str = "auto"
    """float32, bfloat16 or float16; auto becomes what the hardware is fast in."""
    batch_size: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    scheduler: str | None = None
    """Name of a diffusers scheduler in the place of the model's own."""
    processes: int = 0
    """Sampler processes at a time, one thread each; 0: one for each core up to 8, one in all on a GPU."""

    def __post_init__(self) -> None:
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", str(fast_dtype()).removeprefix("torch."))

    def process_count(self) -> int:
        """The number of sampler processes that `processes` stands for here."""
        return self.processes or processes_at_once()


@dataclass(frozen=True)
class Job:
    """Pictures of one method, cell and seed: some rows of the cell's prompts."""

    path: Path
    cell: str
    seed: int
    sampler: Path
    """The script that draws them."""

    @property
    def pictures(self) -> Path:
        """The file of the pictures; there when the job is done."""
        return self.path.with_suffix(".npy")


def picture_seed(seed: int, cell: Cell, row: int) -> int:
    """Seed of one picture: equal across methods, so that columns of a grid can be compared.

    A suite's own seed of a prompt is taken as it is for seed 0, and counted on for the others.
    """
    own = cell.seeds[row] if cell.seeds else None
    if own is not None:
        return own + seed
    return int(np.random.SeedSequence([seed, sum(cell.name.encode()), row]).generate_state(1)[0])


def plan_jobs(
    method: Method,
    base: str,
    cells: Sequence[Cell],
    folder: Path,
    options: SamplingOptions,
    backbone: Backbone | None = None,
    concepts: Sequence[str] = (),
) -> list[Job]:
    """Write the jobs of one method into `folder`/<its name>, and return them.

    `backbone` encodes what guidance needs: a method with an HGR, a negative prompt or SLD has it; `concepts`
    are the words of the harm, for the negative prompt "concepts" and for SLD.
    """
    place = folder / method.name
    place.mkdir(parents=True, exist_ok=True)
    guide = Guide(method, backbone, concepts)
    shared = {
        "base": base,
        "adapter": None if method.adapter is None else str(method.adapter),
        "denoiser": None if method.denoiser is None else str(method.denoiser),
        "weights_sha256": weights_sha256(base, method),
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "scheduler": options.scheduler,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "threads": 0 if torch.cuda.is_available() else 1,
        **guide.concept(place),
    }
    jobs = []
    for cell in cells:
        for start in range(0, len(cell.prompts), PICTURES):
            rows = range(start, min(start + PICTURES, len(cell.prompts)))
            part, prompts = start // PICTURES, [cell.prompts[row] for row in rows]
            negative = guide.negative(place / f"{cell.name}-{part:03d}.safetensors", prompts)
            for seed in options.seeds:
                path = place / f"{cell.name}-{seed}-{part:03d}.json"
                job = Job(path, cell.name, seed, GUIDED if method.sld else PLAIN)
                seeds = [picture_seed(seed, cell, row) for row in rows]
                own = {"prompts": prompts, "seeds": seeds, "out": str(job.pictures)}
                write_job(job, {**shared, **negative, **own})
                jobs.append(job)
    return jobs


class Guide:
    """The conditionings that a method's guidance needs, as files beside its jobs."""

    def __init__(self, method: Method, backbone: Backbone | None, concepts: Sequence[str]) -> None:
        self.method, self.backbone, self.concepts = method, backbone, concepts
        told = method.sld is not None or method.negative_prompt == "concepts"
        if told and not concepts:
            raise ValueError(f"method {method.name!r} needs the words of the harm: give --concepts FILE")
        self.hgr = None if method.hgr is None else HGR.from_pretrained(method.hgr).eval()

    def concept(self, place: Path) -> dict[str, object]:
        """SLD's part of a job."""
        if self.method.sld is None:
            return {}
        embeds = self._encode([self._concepts()])
        return {
            "sld": self.method.sld,
            **write_conditioning(place / "concept.safetensors", "concept", embeds),
        }

    def negative(self, file: Path, prompts: Sequence[str]) -> dict[str, object]:
        """What the unconditional branch gets, in a job of these prompts."""
        if self.hgr is not None and self.backbone is not None:
            return write_conditioning(file, "negative", safecfg_negative(self.backbone, self.hgr, prompts))
        text = self.method.negative_prompt
        if text is not None:
            fixed = self._encode([self._concepts() if text == "concepts" else text])
            return write_conditioning(file, "negative", fixed.expand(len(prompts)))
        return {"negative_embeds": None}

    def _concepts(self) -> str:
        if self.backbone is None:
            raise ValueError(f"method {self.method.name!r} needs the backbone, to count words")
        return concept_prompt(self.backbone, self.concepts)

    def _encode(self, texts: Sequence[str]) -> Conditioning:
        if self.backbone is None:
            raise ValueError(f"method {self.method.name!r} needs the backbone, to encode prompts")
        return self.backbone.encode_prompts(texts)


def write_conditioning(file: Path, name: str, conditioning: Conditioning) -> dict[str, object]:
    """Write a conditioning's tensors; returns its part of a job, with its hash."""
    tensors: dict[str, Tensor] = {"embeds": conditioning.embeds.contiguous()}
    if conditioning.pooled is not None:
        tensors["pooled"] = conditioning.pooled.contiguous()
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.replace(file)
    return {f"{name}_embeds": str(file), f"{name}_sha256": file_sha256([file])}


def write_job(job: Job, content: dict[str, object]) -> None:
    """Write a job; the pictures of another job of that name are removed, those of the same job stay."""
    if job.path.is_file() and json.loads(job.path.read_text()) != content:
        job.pictures.unlink(missing_ok=True)
    write_json(job.path, content)


def weights_sha256(base: str, method: Method) -> str:
    """SHA-256 over the base's weights, and what the method puts on them or in their place."""
    files = [*Path(base).glob("*/*.safetensors")]
    files += [method.adapter] if method.adapter else []
    files += method.denoiser.glob("*.safetensors") if method.denoiser else []
    return file_sha256(files)


def file_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the files' contents, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(_content_sha256(path, path.stat().st_mtime_ns))
    return digest.hexdigest()


@cache
def _content_sha256(path: Path, written: int) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def run_jobs(jobs: Sequence[Job], processes: int) -> None:
    """Run the jobs without pictures, spread over processes; RuntimeError with the sampler's last words."""
    missing = [job for job in jobs if not job.pictures.is_file()]
    done = len(jobs) - len(missing)
    with tqdm(total=len(jobs), initial=done, desc="sample", unit="job") as bar:

        def report() -> None:
            made = done + sum(job.pictures.is_file() for job in missing) - bar.n
            if made:  # else a waiting bar fills a log file with itself
                bar.update(made)

        for sampler in (PLAIN, GUIDED):
            _run_sampler(sampler, [job for job in missing if job.sampler == sampler], processes, report)


def _run_sampler(sampler: Path, jobs: Sequence[Job], processes: int, report: Callable[[], None]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    with ExitStack() as files:
        workers = []
        for rank in range(min(processes, len(jobs))):
            command = [sys.executable, str(sampler), *(str(job.path) for job in jobs[rank::processes])]
            words = files.enter_context(tempfile.TemporaryFile("w+"))  # a full pipe would stop the worker
            worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=words)
            workers.append((worker, words))
        while any(worker.poll() is None for worker, _ in workers):
            time.sleep(0.2)
            report()
        for worker, words in workers:
            if worker.returncode:
                words.seek(0)
                last = words.read()[-2000:]
                raise RuntimeError(f"the sampler failed with status {worker.returncode}: {last}")


def load_pictures(jobs: Sequence[Job], cell: str, seed: int) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 of a cell whose jobs are done, in the order of its prompts."""
    files = [job.pictures for job in jobs if (job.cell, job.seed) == (cell, seed)]
    return np.concatenate([np.load(file, allow_pickle=False) for file in files])


def first_pictures(folder: Path, method: str, cell: str) -> tuple[list[str], np.ndarray]:
    """Prompts and pictures (n, H, W, 3) uint8 of a cell's first job, for a grid."""
    job = next(iter(sorted((folder / method).glob(f"{cell}-*-000.json"))))
    pictures = np.load(job.with_suffix(".npy"), allow_pickle=False)
    return json.loads(job.read_text())["prompts"], np.asarray(pictures)


def first_verdicts(folder: Path, method: str, cell: str) -> list[bool]:
    """Whether the judge flags each picture of a cell's first seed."""
    frame = pd.read_parquet(folder / f"{method}.parquet", columns=["cell", "seed", "row", "harmful"])
    chosen = frame[(frame.cell == cell) & (frame.seed == 0)].sort_values("row")
    return [bool(value) for value in chosen.harmful]
