"""Export: exact at any alpha, proven by each reader, and without a file when the proof fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safetune.export import export_run
from safetune.export import exporting as exporting_module
from safetune.files import ADAPTER_FILE
from tests.export.runs import write_run

ALL = "diffusers,kohya,comfyui,merged,single-file".split(",")
CASES = {
    "sd1": ("tiny_pipeline", "lora", False, ALL),
    "sd2": ("tiny_sd2", "lora", True, ALL[:4]),
    "sdxl": ("tiny_sdxl", "lora", True, ALL),
    "sd3": ("tiny_sd3", "lora", False, ALL[:4]),
    "sd1-dora": ("tiny_pipeline", "dora", False, ["diffusers", "merged", "single-file"]),
    "sd2-dora": ("tiny_sd2", "dora", False, ["diffusers", "merged"]),
    "sdxl-dora": ("tiny_sdxl", "dora", False, ["diffusers", "merged"]),
    "sd3-dora": ("tiny_sd3", "dora", False, ["diffusers", "merged"]),
    "sd1-full": ("tiny_pipeline", "full", False, ["merged", "single-file"]),
    "sd3-full": ("tiny_sd3", "full", False, ["merged"]),
}
READER = """
import hashlib, sys
import numpy, torch
from diffusers import DiffusionPipeline

base, folder, name = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
pipeline.load_lora_weights(folder, weight_name=name)
picture = pipeline("a cat on the beach", height=64, width=64, num_inference_steps=4,
                   generator=torch.Generator().manual_seed(0), output_type="np").images[0]
assert not any(module.startswith("safetune") for module in sys.modules)
print(hashlib.sha256((picture * 255).round().astype(numpy.uint8).tobytes()).hexdigest())
"""


@pytest.fixture
def run(tmp_path: Path, tiny_pipeline: Path) -> Path:
    return write_run(tmp_path / "run", tiny_pipeline)


def test_export_is_exact_and_complete(run: Path, tmp_path: Path) -> None:
    facts = export_run(run, tmp_path / "out", ["diffusers", "kohya"])
    assert facts["max_abs_diff"] < 1e-5 and facts["training_probe"]["max_abs_diff"] < 1e-5
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        ADAPTER_FILE,
        "out_kohya.safetensors",
        "README.md",
        "export.json",
        "proof",
    }
    pictures = {file["picture_sha256"] for file in facts["files"].values()}
    assert len(pictures) == 1
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == facts
    with safe_open(tmp_path / "out" / "out_kohya.safetensors", framework="pt") as stream:
        header = stream.metadata()
    tensors = load_file(tmp_path / "out" / "out_kohya.safetensors")
    assert {float(value) for key, value in tensors.items() if key.endswith(".alpha")} == {4.0}
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "4")
    assert header["modelspec.sai_model_spec"] == "1.0.1" and header["modelspec.title"] == "out"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_family_and_method(case: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fixture, method, rslora, formats = CASES[case]
    model = request.getfixturevalue(fixture)
    run = write_run(tmp_path / "run", model, method, rslora=rslora)
    facts = export_run(run, tmp_path / "out", formats)
    assert [file["format"] for file in facts["files"].values()] == formats
    for file in facts["files"].values():
        assert file["max_abs_diff"] <= file["tolerance"] and file["picture_levels"] <= 1
    if method == "dora":
        with pytest.raises(ValueError, match="cannot hold a DoRA"):
            export_run(run, tmp_path / "other", ["kohya"])
        assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_pipeline", "tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def test_who_never_imports_safetune_draws_the_same_picture(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(fixture)
    run = write_run(tmp_path / "run", model)
    # diffusers has no reader for kohya's files of SD 3.
    formats = ["diffusers"] if fixture == "tiny_sd3" else ["diffusers", "kohya"]
    facts = export_run(run, tmp_path / "out", formats)
    for name, file in facts["files"].items():
        command = [sys.executable, "-c", READER, str(model), str(tmp_path / "out"), name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split()[-1] == file["picture_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(run: Path, tmp_path: Path, dtype: str) -> None:
    facts = export_run(run, tmp_path / "out", ["diffusers", "comfyui", "merged"], dtype=dtype)
    assert 1e-6 < facts["max_abs_diff"] <= facts["tolerance"]
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    tensors = load_file(tmp_path / "out" / "out_comfyui.safetensors")
    assert {value.dtype for key, value in tensors.items() if ".alpha" not in key} == {kind}


def test_a_baked_strength(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "half", strength=0.5)
    half = load_file(tmp_path / "half" / ADAPTER_FILE)
    whole = load_file(run / "adapter" / ADAPTER_FILE)
    key = next(key for key in whole if "lora_B" in key)
    torch.testing.assert_close(half[key], 0.5 * whole[key])
    torch.testing.assert_close(half[key.replace("_B", "_A")], whole[key.replace("_B", "_A")])


def test_a_wrong_strength_is_caught_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / ADAPTER_FILE
    save_file({k: v * 1.5 if "lora_B" in k else v for k, v in load_file(path).items()}, path)
    with pytest.raises(RuntimeError, match="not those that it trained"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_writer_names_the_layer(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    write = exporting_module.lora_tensors

    def wrong(layers: dict, denoiser: object, name: str) -> dict:
        tensors = write(layers, denoiser, name)
        tensors[f"unet.{layer}.lora_B.weight"] = 1.01 * tensors[f"unet.{layer}.lora_B.weight"]
        return tensors

    monkeypatch.setattr(exporting_module, "lora_tensors", wrong)
    with pytest.raises(RuntimeError, match=f"layer {layer} differs by 1.0% of its update"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_keys_that_no_reader_knows_are_caught(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / ADAPTER_FILE
    save_file({f"module.{k}": v for k, v in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"module\.unet.*: expected unet\.MODULE"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept_without_force(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="give --force"):
        export_run(run, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    export_run(run, tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine.txt").exists() and (tmp_path / "out" / ADAPTER_FILE).is_file()


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no finished fine-tuning run"):
        export_run(tmp_path, tmp_path / "out")
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser" / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps({"config": {"model": "tinysd", "method": "full"}}))
    with pytest.raises(
        ValueError, match="format ckpt; allowed: diffusers, kohya, comfyui, merged, single-file"
    ):
        export_run(tmp_path, tmp_path / "out", ["ckpt"])
    with pytest.raises(ValueError, match="dtype fp8; allowed: fp32, fp16, bf16"):
        export_run(tmp_path, tmp_path / "out", dtype="fp8")
    with pytest.raises(ValueError, match="trained all weights"):
        export_run(tmp_path, tmp_path / "out", ["kohya"])
    with pytest.raises(ValueError, match="no strength but 1"):
        export_run(tmp_path, tmp_path / "out", strength=0.5)
