import json
from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.evaluation.baselines import command
from safetune.evaluation.baselines.command import esd_settings, state_file, train_baseline
from safetune.evaluation.baselines.concepts import concepts_sha256, tinysd_concepts, tinysd_preserved
from safetune.evaluation.baselines.esd import EsdSettings
from safetune.export.adapters import read_denoiser


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    short = EsdSettings(steps=9, batch_size=2, lr=1e-3, sampler_steps=2)
    monkeypatch.setattr(command, "TINYSD_ESD", {"esd-x": short, "esd-u": short})


def test_uce_of_tinysd_words(tiny_pipeline: Path, tmp_path: Path) -> None:
    facts = train_baseline("uce", tmp_path / "uce", str(tiny_pipeline))
    written = json.loads((tmp_path / "uce" / "run.json").read_text())
    base = load_backbone(tiny_pipeline)
    assert (
        written["base"] == base.fingerprint
        and written["settings"]["lamb"] == facts["settings"]["lamb"] == 0.5
    )
    assert written["concepts"] == {"count": 45, "sha256": concepts_sha256(tinysd_concepts())}
    assert written["preserve"]["count"] == len(tinysd_preserved())
    assert "knife" not in (tmp_path / "uce" / "run.json").read_text()
    before = base.denoiser.conv_in.weight.clone()
    keys = base.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
    old = keys.clone()
    with torch.no_grad():
        read_denoiser(tmp_path / "uce", base.denoiser)
    assert torch.equal(base.denoiser.conv_in.weight, before) and not torch.equal(keys, old)


def test_esd_of_a_file_of_concepts(tiny_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "concepts.txt"
    file.write_text("knife\ngun\n")
    facts = train_baseline("esd-x", tmp_path / "esd", str(tiny_pipeline), file, steps=2, seed=3)
    assert facts["concepts"]["count"] == 2 and facts["settings"]["steps"] == 2 and facts["seed"] == 3
    assert facts["preserve"]["count"] == 0 and facts["settings"]["loss_first"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["concepts.txt", "esd"]
    assert (tmp_path / "esd" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_killed_training_goes_on(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetune.evaluation.baselines.esd.SAVE_EVERY", 2)
    whole, out = tmp_path / "whole", tmp_path / "cut"
    train_baseline("esd-u", whole, str(tiny_pipeline), steps=4)
    real = command.train_esd

    def killed(*arguments: object) -> None:
        real(*arguments, stop_after=3)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train_esd", killed)
    with pytest.raises(KeyboardInterrupt):
        train_baseline("esd-u", out, str(tiny_pipeline), steps=4)
    assert state_file(out, "esd-u").is_file() and not out.exists()
    monkeypatch.setattr(command, "train_esd", real)
    train_baseline("esd-u", out, str(tiny_pipeline), steps=4)
    name = "diffusion_pytorch_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not state_file(out, "esd-u").exists()


def test_refusals_come_before_any_work(tiny_pipeline: Path, tiny_sd2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="allowed: uce, esd-x, esd-u"):
        train_baseline("esd", out)
    with pytest.raises(ValueError, match="has no steps"):
        train_baseline("uce", out, steps=3)
    with pytest.raises(ValueError, match="leave --preserve out"):
        train_baseline("esd-x", out, preserve=tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        train_baseline("uce", out, str(tiny_pipeline), tmp_path / "absent.txt")
    assert not out.exists()
    with pytest.raises(ValueError, match="is there already"):
        train_baseline("uce", tmp_path)


def test_another_model_needs_concepts_and_gets_the_papers_settings(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "draws_tinysd", lambda backbone: False)
    with pytest.raises(ValueError, match="give --concepts"):
        train_baseline("uce", tmp_path / "out", str(tiny_pipeline))
    assert esd_settings("esd-u", False, None) == EsdSettings() != esd_settings("esd-u", True, None)
