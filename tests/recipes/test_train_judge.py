"""The recipe that trains TinySD's judge."""

import json
from pathlib import Path

import pytest
import torch

from recipes import train_judge
from recipes.train_judge import JudgeConfig, draw_scenes, training_batch
from safetune.config import parse_config
from safetune.tinysd.judge import images_to_tensor, load_judge
from safetune.tinysd.world import render, without_object
from tests.recipes.conftest import run_recipe


def test_a_batch_holds_whole_faded_and_smeared_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_judge, "augment", lambda images, generator: images)
    config = JudgeConfig(batch_size=48)
    scenes, images = training_batch(config, 3)
    assert images.shape == (48, 3, 64, 64)
    drawn = draw_scenes(config, 4, 48)
    whole = images_to_tensor([render(scene) for scene in drawn])
    emptied = images_to_tensor([render(without_object(scene)) for scene in drawn])
    counts = {"smeared": 0, "faded": 0}
    for i, (scene, origin) in enumerate(zip(scenes, drawn, strict=True)):
        if torch.allclose(images[i], whole[i], atol=1e-5):
            assert scene == origin
        elif origin.object and scene == origin:
            shown = (images[i] - emptied[i]).abs().sum() / (whole[i] - emptied[i]).abs().sum()
            assert 0.4 <= shown <= 1
            counts["faded"] += 1
        else:
            assert scene == without_object(origin)
            counts["smeared"] += 1
    assert counts["smeared"] >= 6
    assert counts["faded"] >= 6


def test_shares_of_more_than_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(JudgeConfig, "", ["--faded=0.7", "--smeared=0.5"])
    assert "faded 0.7 and smeared 0.5: give shares that are 1 at most together" in capsys.readouterr().err


def test_the_recipe_writes_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, object] = {"output_dir": tmp_path, "steps": 2, "batch_size": 8, "fresh": 8}
    run_recipe(train_judge, settings, monkeypatch)
    judge = load_judge(tmp_path / "judge")
    assert judge(torch.zeros(1, 3, 64, 64))["object"].shape == (1, 32)
    facts = json.loads((tmp_path / "judge" / "judge.json").read_text())
    assert set(facts["accuracy_on_fresh_renders"]) == {"subject", "object", "place", "style"}
