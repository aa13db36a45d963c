"""Pictures come from plain diffusers, are made once, and never stand for another job."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safetune.backbone import load_backbone
from safetune.evaluation import sampling
from safetune.evaluation.methods import Method
from safetune.evaluation.sampling import (
    PLAIN,
    Job,
    SamplingOptions,
    load_pictures,
    picture_seed,
    plan_jobs,
    run_jobs,
)
from safetune.evaluation.suites import Cell, tinysd_suite
from safetune.export.adapters import save_denoiser

OPTIONS = SamplingOptions(steps=2, seeds=(0,), batch_size=2, processes=1)
BASE = Method("base")


def test_the_sampler_never_imports_safetune(tmp_path: Path) -> None:
    assert "import safetune" not in PLAIN.read_text()
    assert "from safetune" not in PLAIN.read_text()
    code = (
        f"import runpy, sys; runpy.run_path({str(PLAIN)!r}); import diffusers; "
        "print([name for name in sys.modules if name.split('.')[0] == 'safetune'])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert answer.stdout.strip() == "[]"


def test_pictures_are_made_once_and_depend_on_their_seed_alone(
    tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = tinysd_suite(3).cells[:1]
    together = plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path / "a", OPTIONS)
    monkeypatch.setattr(sampling, "PICTURES", 2)
    apart = plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path / "b", OPTIONS)
    assert len(together) == 1 and len(apart) == 2
    run_jobs([*together, *apart], processes=1)
    first = load_pictures(together, "seen", 0)
    assert first.shape == (3, 64, 64, 3) and first.dtype == np.uint8
    assert np.abs(load_pictures(apart, "seen", 0).astype(int) - first).max() <= 1
    stamps = [job.pictures.stat().st_mtime_ns for job in apart]
    apart[1].pictures.unlink()
    again = plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path / "b", OPTIONS)
    run_jobs(again, processes=1)
    assert again == apart and apart[0].pictures.stat().st_mtime_ns == stamps[0]
    assert np.abs(load_pictures(again, "seen", 0).astype(int) - first).max() <= 1


def test_another_job_of_the_same_name_is_made_again(tmp_path: Path, tiny_pipeline: Path) -> None:
    cells = tinysd_suite(1).cells[:1]
    (job,) = plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path, OPTIONS)
    np.save(job.pictures, np.zeros((1, 64, 64, 3), np.uint8))
    plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path, OPTIONS)
    assert job.pictures.is_file()
    other = SamplingOptions(steps=3, seeds=(0,), batch_size=2, processes=1)
    plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path, other)
    assert not job.pictures.is_file()
    assert json.loads(job.path.read_text())["steps"] == 3


@pytest.mark.slow
def test_methods_draw_what_they_are_made_of(tmp_path: Path, tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    save_denoiser(backbone.denoiser, tmp_path / "same")
    with_zeros = {name: value * 0 for name, value in backbone.denoiser.state_dict().items()}
    save_denoiser(backbone.denoiser, tmp_path / "zeros", with_zeros)
    methods = [
        BASE,
        Method("same", denoiser=tmp_path / "same"),
        Method("zeros", denoiser=tmp_path / "zeros"),
        Method("empty-negative", negative_prompt=""),
        Method("negative", negative_prompt="concepts"),
        Method("sld", sld="max"),
    ]
    cells, options = (
        tinysd_suite(2).cells[:1],
        SamplingOptions(steps=4, seeds=(0,), dtype="float32", processes=1),
    )
    jobs = {
        method.name: plan_jobs(method, str(tiny_pipeline), cells, tmp_path, options, backbone, ("a knife",))
        for method in methods
    }
    run_jobs([job for planned in jobs.values() for job in planned], processes=1)
    drawn = {name: load_pictures(planned, "seen", 0) for name, planned in jobs.items()}
    assert np.array_equal(drawn["same"], drawn["base"])
    assert np.abs(drawn["empty-negative"].astype(int) - drawn["base"]).max() <= 1
    for other in ("zeros", "negative", "sld"):
        assert not np.array_equal(drawn[other], drawn["base"])


def test_another_scheduler_draws_in_the_place_of_the_models_own(tmp_path: Path, tiny_pipeline: Path) -> None:
    cells = tinysd_suite(1).cells[:1]
    planned = []
    for name in (None, "DDIMScheduler", "LMSDiscreteScheduler"):
        options = SamplingOptions(steps=4, seeds=(0,), dtype="float32", processes=1, scheduler=name)
        planned.append(plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path / str(name), options))
    run_jobs([job for jobs in planned for job in jobs], processes=1)
    drawn = [load_pictures(jobs, "seen", 0) for jobs in planned]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    options = SamplingOptions(steps=4, seeds=(0,), processes=1, scheduler="FlowMatchEulerDiscreteScheduler")
    jobs = plan_jobs(BASE, str(tiny_pipeline), cells, tmp_path / "flow", options)
    with pytest.raises(RuntimeError, match="FlowMatchEulerDiscreteScheduler cannot take the place of DDIM"):
        run_jobs(jobs, processes=1)


def test_told_methods_need_the_words(tmp_path: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(ValueError, match="method 'sld' needs the words of the harm: give --concepts FILE"):
        plan_jobs(Method("sld", sld="weak"), str(tiny_pipeline), (), tmp_path, OPTIONS)


def test_a_suites_own_seeds_are_kept() -> None:
    cell = Cell("i2p", "harmful", ("a", "b"), seeds=(7, None))
    assert (picture_seed(0, cell, 0), picture_seed(2, cell, 0)) == (7, 9)
    assert picture_seed(0, cell, 1) == picture_seed(0, Cell("i2p", "harmful", ("a", "b")), 1)


def test_a_failing_sampler_says_why(tmp_path: Path) -> None:
    job = Job(tmp_path / "job.json", "seen", 0, PLAIN)
    job.path.write_text("{}")
    with pytest.raises(RuntimeError, match="the sampler failed with status 1"):
        run_jobs([job], processes=1)
