"""The fine-tuning recipe on tiny models: equal runs are equal, a killed run goes on bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from recipes import finetune
from safetune.backbone import load_backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.files import ADAPTER_FILE, write_json
from safetune.finetuning.draws import Draw, Draws
from safetune.labeling.review import Review
from safetune.tinysd.datasets import pool_scenes
from tests.recipes.conftest import read_lines, run_recipe
from tests.recipes.tuning import (
    METHODS,
    assert_close_runs,
    assert_same_runs,
    build_redirector,
    settings_of,
    write_labelled_pool,
)

Run = Callable[..., Path]
RESULT = f"adapter/{ADAPTER_FILE}"


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path, tmp_path: Path) -> Run:
    """A function that runs finetune on a labelled pool of 20 pairs."""
    pool = tmp_path / "pool"
    write_labelled_pool(pool)

    def run(output_dir: Path, model: Path = tiny_pipeline, **options: object) -> Path:
        hgr = output_dir.parent / "hgr" / model.parent.name
        if not hgr.exists():
            build_redirector(model).save_pretrained(hgr)
        settings = {**settings_of(pool, hgr, model), "output_dir": output_dir, **options}
        run_recipe(finetune, settings, monkeypatch)
        return output_dir

    return run


def same_trajectory(one: Path, other: Path, tolerance: float) -> None:
    """Equal losses and gradient norms at every step."""
    for left, right in zip(*(read_lines(run / "metrics.jsonl") for run in (one, other)), strict=True):
        assert left == pytest.approx(right, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("options", [{"dropout": 0.1, "accumulation": 2, "batch_size": 2}, METHODS["full"]])
def test_a_killed_run_goes_on_bit_for_bit(
    tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    options = {"checkpoint_every": 2, **options}
    straight = tune(tmp_path / "straight", **options)
    log = finetune.Metrics.log

    def log_or_die(self: finetune.Metrics, step: int, *rest: object, **more: object) -> dict[str, float]:
        if step == 3:
            raise KeyboardInterrupt
        return log(self, step, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(finetune.Metrics, "log", log_or_die)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "killed", **options)
    monkeypatch.setattr(finetune.Metrics, "log", log)
    monkeypatch.setattr("safetune.latents.draw_latents", None)  # the pictures are there already
    assert_same_runs(straight, tune(tmp_path / "killed", **options))


@pytest.mark.parametrize("method", METHODS)
def test_four_passes_of_one_pair_are_a_batch_of_four(tune: Run, tmp_path: Path, method: str) -> None:
    whole = tune(tmp_path / "whole", **METHODS[method])
    assert_close_runs(whole, tune(tmp_path / "parts", batch_size=1, accumulation=4, **METHODS[method]))


def test_cached_targets_are_the_teachers(tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws with the teacher asked at every step; and what is on disk is not computed again."""
    cached = tune(tmp_path / "cached", cache_targets=2, **METHODS["lora"])

    class Asked:
        def __init__(self, draws: Draws, ask: Callable[[Draw], torch.Tensor]) -> None:
            self.draws, self.ask = draws, ask

        def read(self, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return self.ask(self.draws.draw(rows.numpy(), numbers.numpy()))

    targets = finetune.Lessons.targets

    def targets_of_the_base(lessons: finetune.Lessons, draw: Draw, inputs: finetune.Inputs) -> torch.Tensor:
        with finetune.teacher(lessons.backbone.denoiser):
            return targets(lessons, draw, inputs)

    with monkeypatch.context() as patched:
        patched.setattr(finetune.Lessons, "targets", targets_of_the_base)
        patched.setattr(
            finetune, "cached_targets", lambda _a, _folder, _facts, draws, target, _size: Asked(draws, target)
        )
        asked = tune(tmp_path / "asked", cache_targets=2, **METHODS["lora"])
    # Targets agree to 1e-6; what is computed of them in other batches goes apart a little further.
    same_trajectory(cached, asked, 1e-5)
    shutil.rmtree(cached / "checkpoints")
    monkeypatch.setattr(finetune.Lessons, "targets", None)
    tune(cached, cache_targets=2, **METHODS["lora"])


def test_all_weights(tune: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    """A copy teaches; what is written is a denoiser other than the base; the first step is as the LoRA's."""
    run = tune(tmp_path / "full", method="full", lr=1e-4)
    trained = type(load_backbone(tiny_pipeline).denoiser).from_pretrained(run / "denoiser")
    assert weights_fingerprint(trained) != load_backbone(tiny_pipeline).fingerprint
    assert json.loads((run / "run.json").read_text())["changed"] is True
    lora = read_lines(tune(tmp_path / "lora") / "metrics.jsonl")
    full = read_lines(run / "metrics.jsonl")
    # Both start at the base and share targets and loss, so that their first errors are equal.
    for name in ("loss", "harmful_error", "clean_error"):
        assert full[0][name] == pytest.approx(lora[0][name], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("family", ["tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def test_other_families(family: str, tune: Run, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    weighting = "none" if family == "tiny_sd3" else "min-snr"
    model = request.getfixturevalue(family)
    run = tune(tmp_path / "run", model=model, method="dora", weighting=weighting, steps=2)
    assert any("magnitude" in name for name in load_file(run / RESULT))
    assert read_lines(run / "metrics.jsonl")[1]["grad_norm"] > 0


def test_a_dry_run_leaves_the_run_alone(tune: Run, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", dry_run=True, validate_every=50)
    assert [path.name for path in run.iterdir()] == ["dry-run"]
    assert len(read_lines(run / "dry-run" / "metrics.jsonl")) == 2
    assert (run / "dry-run" / "samples" / "step-000002" / "grid.png").is_file()


def test_a_safe_picture_for_each_harmful_caption(tune: Run, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", steps=1)
    drawn = torch.cat(
        [load_file(part)["latents"] for part in sorted((run / "latents").rglob("*.safetensors"))]
    )
    assert len(drawn) == sum(text.harmful for text, _ in pool_scenes(20))
    assert not (tune(tmp_path / "without", steps=1, safe_pictures=0.0) / "latents").exists()


def test_prompts_alone_get_pictures_of_their_own(tune: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "pool" / "labels" / "labels.json", {"options": {"kind": "prompts"}})
    part = tmp_path / "pool" / "labels" / "part-00000.parquet"
    pd.read_parquet(part).assign(evidence="prompt").to_parquet(part)
    for picture in (tmp_path / "pool").glob("*.png"):
        picture.unlink()
    run = tune(tmp_path / "run")
    drawn = [load_file(file)["latents"] for file in sorted((run / "latents").rglob("*.safetensors"))]
    assert sum(map(len, drawn)) == 20 and not (run / "pictures").exists()
    assert (run / RESULT).is_file()
    with pytest.raises(SystemExit, match="are of prompts alone: leave out --buckets and --cache"):
        tune(tmp_path / "squares", buckets=True)


def test_a_review_changes_what_is_trained_on(
    tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person says that a harmful pair is clean: it leaves the harmful rows and joins the clean ones."""
    drawn: list[Draws] = []

    def watched(*options: object) -> Draws:
        drawn.append(Draws(*options))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(finetune, "Draws", watched)
    tune(tmp_path / "before", steps=1)
    Review(tmp_path / "pool" / "labels", ["000000.png"]).record("000000.png", "clean")
    tune(tmp_path / "after", steps=1)
    before, after = drawn
    assert 0 in before.harmful
    assert set(after.harmful) == set(before.harmful) - {0}
    assert set(after.clean) == set(before.clean) | {0}


def test_labels_of_other_data_are_refused(tune: Run, tmp_path: Path) -> None:
    (tmp_path / "pool" / "000004.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 20 labelled pictures are not there any more"):
        tune(tmp_path / "run")


def test_labels_of_another_redirector_are_refused(tune: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "pool" / "labels" / "labels.json", {"hgr_fingerprint": "0123456789abcdef"})
    with pytest.raises(SystemExit, match="come from the redirector 0123456789abcdef, the one given is"):
        tune(tmp_path / "run")


def test_checkpoints_of_another_run_are_refused(tune: Run, tmp_path: Path) -> None:
    tune(tmp_path / "run", checkpoint_every=2)
    with pytest.raises(SystemExit, match=r"rank was 2, is 4; lr was"):
        tune(tmp_path / "run", checkpoint_every=2, rank=4, lr=0.5)
