"""Labels of a pool: shards are resumed, not computed again, and not mixed with others."""

from pathlib import Path

import pytest

from safetune.backbone import load_backbone
from safetune.labeling import labeler
from safetune.labeling.labeler import LabelOptions, label_pairs, read_labels
from safetune.pairs import load_pairs
from safetune.tinysd.datasets import write_pool
from tests.labeling.test_scores import build_hgr

OPTIONS = LabelOptions(timesteps=(500,), noises=1, shard_size=8, batch_size=4)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_pool(tmp_path / "pool", tmp_path / "truth.json", count=20)
    return tmp_path / "pool"


def test_resume_computes_only_what_is_missing(
    pool: Path, tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, dataset = load_backbone(tiny_pipeline), load_pairs(pool)
    hgr = build_hgr(backbone.fingerprint)
    whole = label_pairs(backbone, hgr, dataset, tmp_path / "whole", OPTIONS)
    label_pairs(backbone, hgr, dataset, tmp_path / "cut", OPTIONS)
    (tmp_path / "cut" / "scores" / "part-00001.parquet").unlink()
    calls = []
    score = labeler.score_shard
    monkeypatch.setattr(labeler, "score_shard", lambda *args: (calls.append(1), score(*args))[1])
    again = label_pairs(backbone, hgr, dataset, tmp_path / "cut", OPTIONS)
    assert len(calls) == 1
    assert again.equals(whole)
    assert read_labels(tmp_path / "cut").equals(whole)
    assert list(whole.columns)[:3] == ["key", "text", "prompt_score"]
    assert len(list((tmp_path / "cut").glob("part-*.parquet"))) == 3


def test_labels_beside_the_data_do_not_change_the_data(pool: Path, tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    before = load_pairs(pool)
    label_pairs(backbone, build_hgr(backbone.fingerprint), before, pool / "labels", OPTIONS)
    after = load_pairs(pool)
    assert list(after["text"]) == list(before["text"])
    assert after.column_names == before.column_names


def test_scores_of_other_settings_are_not_mixed(pool: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    backbone, dataset = load_backbone(tiny_pipeline), load_pairs(pool)
    hgr = build_hgr(backbone.fingerprint)
    label_pairs(backbone, hgr, dataset, tmp_path / "out", OPTIONS)
    other = LabelOptions(timesteps=(400,), noises=1, shard_size=8, batch_size=4)
    with pytest.raises(ValueError, match="holds scores of another model"):
        label_pairs(backbone, hgr, dataset, tmp_path / "out", other)


def test_unfinished_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished labels"):
        read_labels(tmp_path)
