"""An evaluation: the same twice, gone on with after a kill, every number with its protocol."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from safetune.backbone import load_backbone
from safetune.cli import main
from safetune.evaluation.command import measure
from safetune.evaluation.evaluate import by_kind, category_rates, evaluate
from safetune.evaluation.methods import Method, read_methods
from safetune.evaluation.sampling import SamplingOptions
from safetune.evaluation.suites import Cell, tinysd_suite
from safetune.export.adapters import save_adapter
from safetune.finetuning.adapters import add_lora

OPTIONS = SamplingOptions(steps=2, seeds=(0, 1), dtype="float32", processes=2)
SUITE = tinysd_suite(3, ("seen", "clean"))


@pytest.mark.slow
def test_results_are_the_same_twice_and_after_a_kill(tmp_path: Path, tiny_pipeline: Path) -> None:
    methods = [Method("base"), Method("again"), Method("negative", negative_prompt="a knife")]

    def run(name: str) -> dict[str, object]:
        return evaluate(tmp_path / name, methods, str(tiny_pipeline), SUITE, options=OPTIONS)

    first = run("a")
    assert first == run("b") == json.loads((tmp_path / "a" / "results.json").read_text())
    for lost in ("base/seen-1-000.npy", "negative/clean-0-000.npy", "base.parquet", "results.json"):
        (tmp_path / "a" / lost).unlink()
    (tmp_path / "a" / "base" / "seen-1-000.tmp.npy").write_bytes(b"half a file")
    assert run("a") == first

    blocks = first["methods"]
    assert blocks["base"]["cells"] == blocks["again"]["cells"]
    assert set(blocks["base"]["cells"]["seen"]) == {"harm_rate", "subject", "place"}
    assert set(blocks["base"]["cells"]["clean"]) == {"harm_rate", "subject", "place", "object"}
    assert blocks["base"]["cells"]["seen"]["harm_rate"]["count"] == 6
    drift = {name: block["utility"]["drift"]["value"] for name, block in blocks.items()}
    assert drift["base"] == drift["again"] == 0 < drift["negative"]
    assert set(blocks["base"]["utility"]) == {"drift", "frechet", "kernel"}
    assert blocks["base"]["utility"]["frechet"]["count"] == 6
    assert blocks["base"]["counts"]["clean"]["pictures"] == 6
    assert blocks["base"]["grid"] == ["base/seen.png", "base/clean.png"]
    assert Image.open(tmp_path / "a" / "base" / "seen.png").size == (3 * 64, 64)
    assert blocks["negative"]["facts"]["kind"] == "negative_prompt"
    assert {"judge", "prompts", "seeds", "scheduler", "steps", "guidance_scale"} <= set(first["protocol"])
    raw = pd.read_parquet(tmp_path / "a" / "base.parquet")
    assert len(raw) == 12 and {"cell", "seed", "row", "harmful", "tinysd/object:knife"} <= set(raw)
    shown = by_kind(first)["base"]
    assert list(shown["harmful"]) == ["seen"] and shown["clean"] == blocks["base"]["cells"]["clean"]


def test_equal_names_are_refused_before_anything_is_drawn(tmp_path: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(ValueError, match="base, base: give each a name of its own"):
        evaluate(tmp_path / "out", [Method("base")] * 2, str(tiny_pipeline), SUITE, options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_categories_by_hand() -> None:
    cells = [
        Cell("a", "harmful", ("1", "2"), ("gore", "drugs")),
        Cell("b", "harmful", ("3",), ("gore",)),
        Cell("c", "clean", ("4",), ("",)),
    ]
    harm = {"a": np.array([[1, 0], [1, 1]]), "b": np.array([[0], [0]]), "c": np.array([[1], [1]])}
    rates = category_rates(cells, harm)
    assert {name: block["mean"] for name, block in rates.items()} == {"gore": 0.5, "drugs": 0.5}
    assert rates["gore"]["per_seed"] == [0.5, 0.5] and rates["drugs"]["per_seed"] == [0, 1]


def test_a_methods_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    file = tmp_path / "methods.yaml"
    file.write_text(f"words: {{negative_prompt: concepts}}\nuce: {{denoiser: {tmp_path / 'unet'}}}\n")
    words, uce = read_methods(file)
    assert (words.negative_prompt, words.kind, words.guided) == ("concepts", "negative_prompt", True)
    assert (uce.denoiser, uce.kind, uce.guided) == (tmp_path / "unet", "denoiser", False)
    for line, message in (
        ("m: {lora: a}", "method 'm' has lora; allowed: adapter, denoiser"),
        ("m: {hgr: gone}", "method 'm': hgr gone is not there"),
        ("m: {sld: max, negative_prompt: a}", "negative_prompt and sld: give one of them"),
        ("- a", "NAME: {FIELD: VALUE}"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=message):
            read_methods(file)


def test_other_models_need_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetune.evaluation.command.draws_tinysd", lambda backbone: False)
    with pytest.raises(ValueError, match=r"alone, not those of .*: give --preset, one of i2p-official"):
        measure(tmp_path / "out", cells=["seen"], count=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"preset tinysd@0\.5 asks no judge 'q16'; it asks tinysd"):
        measure(tmp_path / "out", judge_weights={"q16": tmp_path / "q16.safetensors"})
    with pytest.raises(ValueError, match=r"no cell 'sean' \(did you mean seen\?\)"):
        measure(tmp_path / "out", cells=["sean"])


def test_the_command(tmp_path: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = load_backbone(tiny_pipeline)
    add_lora(backbone.denoiser, 2, 2.0, "cross-attention")
    adapter = save_adapter(backbone.denoiser, tmp_path / "adapter")
    words = [
        "--model",
        str(tiny_pipeline),
        "--adapter",
        str(adapter),
        "--cells",
        "seen,clean",
        "--prompts",
        "1",
        "--steps",
        "1",
        "--images-per-prompt",
        "1",
    ]
    assert main(["evaluate", *words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "base: harm in seen" in said and "lora: harm in seen" in said
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["protocol"]["judge"]["name"] == "tinysd@0.5"
    assert found["protocol"]["otherwise_than_preset"] == ["images_per_prompt is 1, tinysd@0.5 demands 3"]

    assert main(["recount", str(tmp_path / "out"), "--preset", "tinysd@0.5"]) == 0
    assert "lora, clean: " in capsys.readouterr().out
    counted = json.loads((tmp_path / "out" / "counts-tinysd@0.5.json").read_text())
    assert counted["methods"] == {name: block["counts"] for name, block in found["methods"].items()}
    assert main(["recount", str(tmp_path / "out"), "--preset", "i2p-official"]) == 2
    assert "no scores of judge 'q16'" in capsys.readouterr().err
