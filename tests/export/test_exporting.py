"""Export: exact at any alpha, proven by a reader, and without a file when the proof fails."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safetune.backbone import load_backbone
from safetune.export import export_run
from safetune.export.adapters import save_adapter
from safetune.export.verification import write_probe
from safetune.files import ADAPTER_FILE
from safetune.finetuning.adapters import add_lora


@pytest.fixture
def run(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """A finished run whose LoRA has alpha unlike its rank."""
    backbone, adapter = load_backbone(tiny_pipeline), tmp_path / "run" / "adapter"
    add_lora(backbone.denoiser, rank=4, alpha=10.0, targets="attention")
    torch.manual_seed(0)
    for name, value in backbone.denoiser.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.05)
    save_adapter(backbone.denoiser, adapter)
    write_probe(backbone.denoiser, backbone.encode_prompts(["a cat", "a dog"]).embeds, (4, 16, 16), adapter)
    config = {"model": str(tiny_pipeline), "rank": 4, "targets": "attention", "steps": 1, "eta": 1.0}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": config}))
    return tmp_path / "run"


def test_export_is_exact_and_complete(run: Path, tmp_path: Path) -> None:
    facts = export_run(run, tmp_path / "out")
    assert facts["max_abs_diff"] < 1e-5
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        ADAPTER_FILE,
        "README.md",
        "export.json",
    }
    assert "load_lora_weights" in (tmp_path / "out" / "README.md").read_text()


def test_a_wrong_strength_is_caught_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / ADAPTER_FILE
    save_file({k: v * 1.5 if "up" in k or "lora_B" in k else v for k, v in load_file(path).items()}, path)
    with pytest.raises(RuntimeError, match="differs from the trained one"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keys_that_no_reader_knows_are_caught(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / ADAPTER_FILE
    save_file({f"module.{k}": v for k, v in load_file(path).items()}, path)
    with pytest.raises((RuntimeError, ValueError)):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="give --force"):
        export_run(run, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no finished fine-tuning run"):
        export_run(tmp_path, tmp_path / "out")
