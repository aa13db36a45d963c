"""The fine-tuning recipe on a tiny model: pictures are drawn once, and a killed run goes on bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from recipes import finetune
from safetune.backbone import load_backbone
from safetune.files import ADAPTER_FILE, write_json, write_parquet
from safetune.labeling.finished import SCORES
from safetune.labeling.review import Review
from safetune.tinysd.datasets import pool_scenes, write_pool
from tests.labeling.test_scores import build_hgr
from tests.recipes.conftest import run_recipe

pd = pytest.importorskip("pandas")
Run = Callable[..., Path]


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path, tmp_path: Path) -> Run:
    """A function that runs finetune on a labelled pool of 20 pairs."""
    pool = tmp_path / "pool"
    write_pool(pool, tmp_path / "truth.json", count=20)
    hgr = build_hgr(load_backbone(tiny_pipeline).fingerprint)
    hgr.save_pretrained(tmp_path / "hgr")
    label_by_truth(pool, hgr.concepts[0])

    def run(output_dir: Path, **options: object) -> Path:
        settings = {
            "data": pool,
            "hgr": tmp_path / "hgr",
            "model": tiny_pipeline,
            "output_dir": output_dir,
            "steps": 4,
            "batch_size": 4,
            "rank": 2,
            "picture_steps": 1,
            "mixed_precision": "no",
            **options,
        }
        run_recipe(finetune, settings, monkeypatch)
        return output_dir

    return run


def label_by_truth(pool: Path, concept: str) -> None:
    """Labels as the labeler writes them, from the truth: harm of the caption, or else of the picture."""
    scenes = pool_scenes(20)
    harmful = [text.harmful or picture.harmful for text, picture in scenes]
    frame = pd.DataFrame(
        {
            "key": [f"{number:06d}.png" for number in range(20)],
            "text": [text.caption for text, _ in scenes],
            **dict.fromkeys(SCORES, 1.0),
            "evidence": ["prompt" if text.harmful else "image" for text, _ in scenes],
            "concept": concept,
            "harm": np.where(harmful, 0.99, 0.01),
            "label": np.where(harmful, "harmful", "clean"),
        }
    )
    write_parquet(frame, pool / "labels" / "part-00000.parquet")
    write_json(pool / "labels" / "labels.json", {})


def test_a_killed_run_goes_on_bit_for_bit(tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = tune(tmp_path / "straight", checkpoint_every=2)
    log = finetune.Metrics.log

    def log_or_die(self: finetune.Metrics, step: int, scalars: dict[str, torch.Tensor]) -> dict[str, float]:
        if step == 3:
            raise KeyboardInterrupt
        return log(self, step, scalars)

    monkeypatch.setattr(finetune.Metrics, "log", log_or_die)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "killed", checkpoint_every=2)
    monkeypatch.setattr(finetune.Metrics, "log", log)
    monkeypatch.setattr("safetune.latents.draw_latents", None)  # the pictures are there already
    killed = tune(tmp_path / "killed", checkpoint_every=2)
    for name in ("metrics.jsonl", f"adapter/{ADAPTER_FILE}"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_safe_picture_for_each_harmful_caption(tune: Run, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", steps=1)
    drawn = torch.cat(
        [load_file(part)["latents"] for part in sorted((run / "latents").glob("*.safetensors"))]
    )
    assert len(drawn) == sum(text.harmful for text, _ in pool_scenes(20))
    assert not (tune(tmp_path / "without", steps=1, safe_pictures=0.0) / "latents").exists()


def test_a_review_changes_what_is_trained_on(
    tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person says that a harmful pair is clean: it leaves the harmful rows and joins the clean ones."""
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    draw = finetune.draw_batch

    def watch(config: finetune.FinetuneConfig, accelerator: Accelerator, harmful: np.ndarray,
              clean: np.ndarray, *rest: object) -> object:  # fmt: skip
        drawn.append((harmful, clean))
        return draw(config, accelerator, harmful, clean, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(finetune, "draw_batch", watch)
    tune(tmp_path / "before", steps=1)
    Review(tmp_path / "pool" / "labels", ["000000.png"]).record("000000.png", "clean")
    tune(tmp_path / "after", steps=1)
    (harmful, clean), (harmful_after, clean_after) = drawn
    assert 0 in harmful
    assert set(harmful_after) == set(harmful) - {0}
    assert set(clean_after) == set(clean) | {0}


def test_labels_of_other_data_are_refused(tune: Run, tmp_path: Path) -> None:
    (tmp_path / "pool" / "000004.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 20 labelled pictures are not there any more"):
        tune(tmp_path / "run")


def test_labels_of_another_redirector_are_refused(tune: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "pool" / "labels" / "labels.json", {"hgr_fingerprint": "0123456789abcdef"})
    with pytest.raises(SystemExit, match="come from the redirector 0123456789abcdef, the one given is"):
        tune(tmp_path / "run")


def test_pictures_are_swapped_for_safe_ones_of_the_same_prompt() -> None:
    config = finetune.FinetuneConfig(data="", hgr=Path(), batch_size=64, safe_pictures=0.5)
    harmful, clean, safe = np.arange(5), np.arange(5, 10), np.full(10, -1)
    safe[:4] = 10 + np.arange(4)  # the fifth is harmful by its picture alone
    rows, pictures, *_ = finetune.draw_batch(config, Accelerator(), harmful, clean, safe, step=0)
    own = pictures == rows
    assert torch.equal(pictures[~own], 10 + rows[~own])
    assert own[rows >= 4].all()
    assert 4 <= int((~own).sum()) <= 28
