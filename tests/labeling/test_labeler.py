"""Labels of a pool: shards are resumed, not computed again, not mixed with others, and cut in any way."""

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from safetune.backbone import load_backbone
from safetune.labeling.finished import read_finished, read_labels
from safetune.labeling.harm import CalibrationOptions
from safetune.labeling.labeler import Labeler, LabelOptions, RejectedRow, Workers, label_pairs
from safetune.labeling.review import Review
from safetune.labeling.scoring import ScoreOptions
from safetune.pairs import Limits, open_pairs
from safetune.tinysd.datasets import write_pool
from tests.labeling.test_scores import build_hgr
from tests.pairs.damaged import KINDS, NOTES, write_damaged_corpus

SCORES = ["prompt_score", "guidance_score", "image_score", "pair_score", "harm"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_pool(tmp_path / "pool", tmp_path / "truth.json", count=20)
    return tmp_path / "pool"


def build_labeler(folder: Path, shard_size: int = 8, **scoring: object) -> Labeler:
    backbone = load_backbone(folder)
    options = ScoreOptions(batch_size=4, **scoring)  # type: ignore[arg-type]
    return Labeler(backbone, build_hgr(backbone.fingerprint), LabelOptions(shard_size=shard_size), options)


def test_resume_computes_only_what_is_missing(
    pool: Path, tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler, source = build_labeler(tiny_pipeline), open_pairs(pool)
    label_pairs(labeler, source, tmp_path / "whole")
    label_pairs(labeler, source, tmp_path / "cut")
    (tmp_path / "cut" / "scores" / "look0-00001.parquet").unlink()
    (tmp_path / "cut" / "part-00002.parquet").unlink()
    calls = []
    score = Labeler.first_look
    monkeypatch.setattr(Labeler, "first_look", lambda *args: (calls.append(1), score(*args))[1])
    label_pairs(labeler, source, tmp_path / "cut")
    assert len(calls) == 1
    whole, cut = read_labels(tmp_path / "whole"), read_labels(tmp_path / "cut")
    pd.testing.assert_frame_equal(whole, cut, check_exact=True)
    assert list(whole.columns)[:3] == ["key", "text", "prompt_score"]
    assert list(whole.key) == [f"{number:06d}.png" for number in range(20)]
    assert len(list((tmp_path / "cut").glob("part-*.parquet"))) == 3


def test_two_workers_write_what_one_does(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    labeler, source = build_labeler(tiny_pipeline), open_pairs(pool)
    label_pairs(labeler, source, tmp_path / "one")
    barrier = threading.Barrier(2, timeout=60)

    def work(rank: int) -> None:
        workers = Workers(rank, 2, lambda: (barrier.wait(), None)[1])
        label_pairs(labeler, source, tmp_path / "two", workers=workers)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = read_labels(tmp_path / "one"), read_labels(tmp_path / "two")
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize("exhaustive", [False, True])
def test_scores_hang_on_their_pair_alone(
    pool: Path, tmp_path: Path, tiny_pipeline: Path, exhaustive: bool
) -> None:
    """Other shards, another batch size and another order give the same scores, up to rounding."""
    source = open_pairs(pool)
    draws = {"exhaustive": exhaustive, "timesteps": (200, 500), "noises": 1}
    label_pairs(build_labeler(tiny_pipeline, **draws), source, tmp_path / "one")
    other = build_labeler(tiny_pipeline, shard_size=5, **draws)
    object.__setattr__(other.scoring, "batch_size", 3)
    label_pairs(other, source, tmp_path / "other")
    lines = (pool / "metadata.jsonl").read_text().splitlines()
    (pool / "metadata.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    label_pairs(build_labeler(tiny_pipeline, **draws), open_pairs(pool), tmp_path / "turned")
    wanted = read_labels(tmp_path / "one").set_index("key")
    for name in ("other", "turned"):
        found = read_labels(tmp_path / name).set_index("key").loc[wanted.index]
        np.testing.assert_allclose(found[SCORES[:3]], wanted[SCORES[:3]], rtol=2e-3, atol=2e-3)


def test_exhaustive_scores_every_pair_at_every_draw(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    labeler = build_labeler(tiny_pipeline, exhaustive=True, timesteps=(300, 600), noises=2)
    summary = label_pairs(labeler, open_pairs(pool), tmp_path / "out")
    assert summary["evaluations"] == 20 * 4 * (3 + 2)
    assert read_labels(tmp_path / "out").image_score.notna().all()
    assert not list((tmp_path / "out" / "scores").glob("look1-*"))


def test_adaptive_spends_passes_where_a_pair_is_undecided(
    pool: Path, tmp_path: Path, tiny_pipeline: Path
) -> None:
    labeler = build_labeler(tiny_pipeline, told=1.0)
    labels_folder = tmp_path / "out"
    summary = label_pairs(labeler, open_pairs(pool), labels_folder)
    labels = read_labels(labels_folder)
    silent = int(labels.image_score.notna().sum())
    second, third = (
        len(pd.read_parquet(labels_folder / "scores" / f"undecided{look}.parquet")) for look in (1, 2)
    )
    assert 0 < third <= second <= silent / 2 + 1
    assert summary["evaluations"] == 5 * silent + 2 * (20 - silent) + 5 * second + 2 * 5 * third


def test_prompts_alone_and_images_alone(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    labeler = build_labeler(tiny_pipeline)
    prompts = Labeler(labeler.backbone, labeler.hgr, LabelOptions(kind="prompts"), labeler.scoring)
    summary = label_pairs(prompts, open_pairs(pool, kind="prompts"), tmp_path / "prompts")
    assert summary["evaluations"] == 0
    assert read_labels(tmp_path / "prompts").image_score.isna().all()
    images = Labeler(labeler.backbone, labeler.hgr, LabelOptions(kind="images"), labeler.scoring)
    label_pairs(images, open_pairs(pool, kind="images"), tmp_path / "images")
    labels = read_labels(tmp_path / "images")
    assert set(labels.evidence) == {"image"}
    assert labels.image_score.notna().all()


def test_a_thousand_damaged_rows_are_all_accounted_for(tmp_path: Path, tiny_pipeline: Path) -> None:
    rows = write_damaged_corpus(tmp_path / "pool", 1000)
    labeler = build_labeler(tiny_pipeline, shard_size=128)
    source = open_pairs(tmp_path / "pool")
    summary = label_pairs(labeler, source, tmp_path / "out")
    labels, rejected = read_labels(tmp_path / "out"), pd.read_parquet(tmp_path / "out" / "rejected.parquet")
    assert len(labels) + (~rejected.kept).sum() == sum(map(len, rows.values())) == 1000
    assert sum(summary["rejected"].values()) == 1000 - len(labels)
    assert set(rejected[rejected.kept].key) == {key for kind in NOTES if NOTES[kind] for key in rows[kind]}
    assert len(KINDS) > 30
    with pytest.raises(RejectedRow, match="the run is strict"):
        strict = Labeler(labeler.backbone, labeler.hgr, labeler.options, labeler.scoring, Limits(), True)
        label_pairs(strict, source, tmp_path / "strict")


def test_scores_of_other_settings_are_not_mixed(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    source = open_pairs(pool)
    label_pairs(build_labeler(tiny_pipeline), source, tmp_path / "out")
    with pytest.raises(ValueError, match="was made with other settings: scoring was"):
        label_pairs(build_labeler(tiny_pipeline, told=0.4), source, tmp_path / "out")


def test_labels_beside_the_data_do_not_change_the_data(pool: Path, tiny_pipeline: Path) -> None:
    """A run that was killed finds its own scores inside the pool's folder and goes on."""
    labeler, before = build_labeler(tiny_pipeline), open_pairs(pool)
    label_pairs(labeler, before, pool / "labels")
    (pool / "labels" / "labels.json").unlink()
    label_pairs(labeler, open_pairs(pool), pool / "labels")
    assert len(read_labels(pool / "labels")) == 20


def test_known_labels_move_the_threshold(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    labeler, source = build_labeler(tiny_pipeline), open_pairs(pool)
    label_pairs(labeler, source, tmp_path / "out")
    labels = read_labels(tmp_path / "out").sort_values("harm", ascending=False)
    known = pd.Series([True, False], index=labels.key.iloc[[0, -1]])
    options = CalibrationOptions(precision=0.9)
    if labels.harm.iloc[0] == labels.harm.iloc[-1]:
        with pytest.raises(ValueError, match="no threshold reaches it"):
            label_pairs(labeler, source, tmp_path / "out", options, known=known)
    else:
        summary = label_pairs(labeler, source, tmp_path / "out", options, known=known)
        assert summary["calibration"]["harmful_above"] == pytest.approx(labels.harm.iloc[0])
    with pytest.raises(ValueError, match="1 known labels are about keys that the pool lacks, such as 'x'"):
        label_pairs(labeler, source, tmp_path / "out", options, known=pd.Series([True], index=["x"]))


def test_a_review_counts_over_the_labels(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    label_pairs(build_labeler(tiny_pipeline), open_pairs(pool), tmp_path / "out")
    Review(tmp_path / "out", ["000003.png"]).record("000003.png", "harmful")
    row = read_labels(tmp_path / "out").set_index("key").loc["000003.png"]
    assert (row.label, row.harm) == ("harmful", 1.0)


def test_labels_are_a_dataset(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    from datasets import load_dataset

    label_pairs(build_labeler(tiny_pipeline), open_pairs(pool), tmp_path / "out")
    parts = str(tmp_path / "out" / "part-*.parquet")
    dataset = load_dataset("parquet", data_files=parts, split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.num_rows == 20
    assert {"key", "text", "harm", "label", "category", "image_score_weapons"} <= set(dataset.column_names)


def test_unfinished_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished labels"):
        read_finished(tmp_path)
