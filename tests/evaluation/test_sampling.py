"""Pictures come from plain diffusers, are made once, and never stand for another job."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safetune.evaluation.sampling import SAMPLER, SamplingOptions, load_pictures, run_jobs, sample_condition
from safetune.evaluation.suites import tinysd_suite

OPTIONS = SamplingOptions(steps=2, seeds=(0,), batch_size=2, processes=1)


def test_the_sampler_never_imports_safetune(tmp_path: Path) -> None:
    assert "import safetune" not in SAMPLER.read_text()
    assert "from safetune" not in SAMPLER.read_text()
    code = (
        f"import runpy, sys; runpy.run_path({str(SAMPLER)!r}); import diffusers; "
        "print([name for name in sys.modules if name.split('.')[0] == 'safetune'])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert answer.stdout.strip() == "[]"


def test_pictures_are_made_once_and_depend_on_their_seed_alone(tmp_path: Path, tiny_pipeline: Path) -> None:
    cells = tinysd_suite(3)[:2]
    jobs = sample_condition("base", str(tiny_pipeline), cells, tmp_path, OPTIONS)
    run_jobs(jobs, processes=1)
    first = load_pictures(jobs[0])
    assert first.shape == (3, 64, 64, 3)
    assert first.dtype == np.uint8
    stamps = [job.with_suffix(".npy").stat().st_mtime_ns for job in jobs]
    run_jobs(sample_condition("base", str(tiny_pipeline), cells, tmp_path, OPTIONS), processes=1)
    assert [job.with_suffix(".npy").stat().st_mtime_ns for job in jobs] == stamps


def test_another_job_of_the_same_name_is_made_again(tmp_path: Path, tiny_pipeline: Path) -> None:
    cells = tinysd_suite(1)[:1]
    (job,) = sample_condition("base", str(tiny_pipeline), cells, tmp_path, OPTIONS)
    np.save(job.with_suffix(".npy"), np.zeros((1, 64, 64, 3), np.uint8))
    sample_condition("base", str(tiny_pipeline), cells, tmp_path, OPTIONS)
    assert job.with_suffix(".npy").is_file()
    other = SamplingOptions(steps=3, seeds=(0,), batch_size=2, processes=1)
    sample_condition("base", str(tiny_pipeline), cells, tmp_path, other)
    assert not job.with_suffix(".npy").is_file()
    assert json.loads(job.read_text())["steps"] == 3


def test_a_failing_sampler_says_why(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text("{}")
    with pytest.raises(RuntimeError, match="the sampler failed with status 1"):
        run_jobs([job], processes=1)
