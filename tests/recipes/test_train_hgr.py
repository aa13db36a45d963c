"""The recipe that trains a redirector: each family, each source, and runs that must equal each other."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from recipes import train_hgr
from recipes.train_hgr import HGRConfig
from safetune.backbone import Backbone, load_backbone
from safetune.concepts import load_bank
from safetune.config import parse_config
from safetune.hgr import HGR
from safetune.pairs import write_pairs
from tests.recipes.conftest import Run, read_lines

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("*hgr*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid_and_their_headers_hold_the_command(path: Path) -> None:
    parse_config(HGRConfig, "", ["--config", str(path)])
    assert f"recipes/train_hgr.py --config recipes/configs/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "got none of data, bank and prompts: give exactly one"),
        (["--data=a", "--bank=i2p"], "got data and bank of data, bank and prompts: give exactly one"),
        (["--bank=i2p", "--guidance_scale=1"], "guidance_scale 1.0: give more than 1"),
        (["--bank=i2p", "--batch_size=1"], "batch_size 1: give 2 or more"),
        (["--bank=i2p", "--clean_share=1"], "clean_share 1.0: give more than 0 and less than 1"),
        (["--bank=i2p", "--teacher_reuse=0"], "teacher_reuse 0: give 1 or more"),
        (["--bank=i2p", "--ema_decay=1"], "ema_decay 1.0: give 0 for none"),
        (["--bank=i2p", "--validation_share=0"], "validation_share 0.0: give more than 0"),
        (["--bank=i2p", "--gradient_accumulation=0"], "gradient_accumulation 0: give 1 or more"),
        (["--bank=i2p", "--patience=-1"], "patience -1: give 0"),
    ],
)
def test_mistakes_are_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(HGRConfig, "", options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank": "i2q", "prompts": None}, "no concept bank 'i2q' .did you mean i2p"),
        ({"bank": "i2p", "prompts": None, "count": 20}, "no harmful prompt can be spared for validation"),
        ({"prompts": "none.csv"}, "none.csv"),
        ({"resolution": 50}, "resolution 50: give a multiple of 4"),
    ],
)
def test_mistakes_of_the_data_end_the_run(
    options: dict[str, object], message: str, train: Run, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"train_hgr: .*{message}"):
        train(tmp_path, **options)


def weights_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("model", ["tiny_pipeline", "tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def test_each_family_trains(
    model: str,
    train: Run,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, loaded, built = request.getfixturevalue(model), [], []

    def load(*arguments: object) -> Backbone:
        backbone = load_backbone(*arguments)
        monkeypatch.setattr(backbone.pipeline.vae, "decode", None)  # pictures stay latents
        loaded.append((backbone, weights_hash(backbone.denoiser)))
        return backbone

    def build(**options: object) -> HGR:
        built.append(HGR(**options))
        return built[-1]

    monkeypatch.setattr(train_hgr, "load_backbone", load)
    monkeypatch.setattr(train_hgr, "HGR", build)
    settings = {"model": folder, "steps": 25, "patience": 0, "gradient_checkpointing": True}
    if model == "tiny_sd3":  # its prompts are twelve times as long
        settings |= {"steps": 12, "warm_steps": 0}
    out = train(tmp_path, **settings)

    last = read_lines(out / "validation.jsonl")[-1]
    untrained = last["harmful_error"] / last["residual"]
    assert last["loss"] < 0.9 * untrained and last["residual"] < 0.9
    assert last["hed_harmful"] > last["hed_clean"]
    (backbone, before), (trained,) = loaded[0], built
    assert weights_hash(backbone.denoiser) == before
    assert not any(p.grad is not None for p in backbone.denoiser.parameters())

    prompts = load_backbone(folder).encode_prompts(["a cat with a knife in the forest", "a dog"])
    again = HGR.from_pretrained(out / "hgr")
    again.check_base(backbone.fingerprint)
    assert (again.concepts, again.categories) == (("bomb", "knife"), ("explosives", "weapons"))
    expected, found = trained.eval().delta(prompts), again.delta(prompts)
    assert torch.equal(found.embeds, expected.embeds)
    assert torch.equal(again.prototypes, trained.prototypes) and again.prototypes.abs().max() > 0
    if expected.pooled is not None:
        assert torch.equal(found.pooled, expected.pooled) and expected.pooled.abs().max() > 0


def test_run_folder(train: Run, tmp_path: Path) -> None:
    out = train(tmp_path, steps=5, validate_every=2)
    assert {path.name for path in out.iterdir()} == {
        *("hgr", "checkpoints", "latents", "metrics.jsonl", "validation.jsonl", "run.json")
    }
    assert [line["step"] for line in read_lines(out / "validation.jsonl")] == [1, 3, 4]
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == list(range(5))
    run = json.loads((out / "run.json").read_text())
    assert (run["steps_done"], run["stopped"], run["alarm"]) == (5, "all steps done", None)
    assert len(run["data_fingerprint"]) == 16
    assert not [path for path in out.rglob("*") if path.suffix in (".png", ".jpg", ".webp")]
    assert ModelCard.load(out / "hgr" / "README.md").data.base_model is None


def test_given_pictures_and_the_concept_form(train: Run, tmp_path: Path) -> None:
    texts = [
        "a cat with a knife",
        "a dog and a bomb",
        "a fox with a knife",
        "a pig with a bomb",
        "a cat",
        "a dog",
    ]
    categories = ["weapons", "explosives"] * 2 + ["", ""]
    rows = [{"text": text, "category": category} for text, category in zip(texts, categories, strict=True)]
    pictures = [Image.new("RGB", (48, 80), (40 * number, 90, 200)) for number in range(6)]
    write_pairs(tmp_path / "pairs", pictures, rows)
    options = {"data": tmp_path / "pairs", "prompts": None, "steps": 2, "resolution": 32}
    out = train(tmp_path / "out", **options)
    latents = load_file(out / "latents" / "part-00000.safetensors")["latents"]
    assert latents.shape == (6, 4, 8, 8)
    assert json.loads((out / "latents" / "latents.json").read_text())["resolution"] == 32
    assert HGR.from_pretrained(out / "hgr").concepts == ("explosives", "weapons")
    with pytest.raises(SystemExit, match="resolution was 32, is 64"):
        train(tmp_path / "out", **{**options, "resolution": 64})


def test_a_bank(train: Run, tmp_path: Path) -> None:
    out = train(tmp_path, bank="i2p", prompts=None, count=140, steps=1, resolution=16)
    hgr = HGR.from_pretrained(out / "hgr")
    assert dict(zip(hgr.concepts, hgr.categories, strict=True)) == load_bank("i2p").concepts


def test_a_hub_name_stands_in_the_card(
    train: Run, tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train_hgr, "load_backbone", lambda model, *options: load_backbone(tiny_pipeline, *options)
    )
    out = train(tmp_path, model="owner/model", steps=1)
    assert ModelCard.load(out / "hgr" / "README.md").data.base_model == "owner/model"


def assert_close_runs(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    """Metrics, validations and weights of two runs."""
    for name in ("metrics.jsonl", "validation.jsonl"):
        rows, others = read_lines(first / name), read_lines(second / name)
        assert len(rows) == len(others) > 0
        for row, other in zip(rows, others, strict=True):
            assert row == pytest.approx(other, abs=tolerance, rel=tolerance)
    weights, others = (load_file(out / "hgr" / "model.safetensors") for out in (first, second))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=tolerance, rtol=tolerance, msg=name)


def test_accumulated_passes_equal_one_batch(train: Run, tmp_path: Path) -> None:
    settings = {"steps": 4, "validate_every": 2, "lr": 1e-4}
    whole = train(tmp_path / "whole", batch_size=8, **settings)
    parts = train(tmp_path / "parts", batch_size=2, gradient_accumulation=4, **settings)
    assert_close_runs(whole, parts)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"teacher_reuse": 2}])
def test_a_killed_run_goes_on_bit_for_bit(
    options: dict[str, object], train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 6, "checkpoint_every": 3, "validate_every": 2, **options}
    straight = train(tmp_path / "straight", **settings)
    log, died = train_hgr.Metrics.log, []

    def log_or_die(self: train_hgr.Metrics, step: int, scalars: dict[str, torch.Tensor]) -> dict[str, float]:
        values = log(self, step, scalars)
        if step == 4 and not died:
            died.append(step)
            raise KeyboardInterrupt
        return values

    monkeypatch.setattr(train_hgr.Metrics, "log", log_or_die)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", **settings)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.')
    killed = train(tmp_path / "killed", **settings)
    assert died
    for name in ("metrics.jsonl", "validation.jsonl", "hgr/model.safetensors"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_teacher_batch_serves_several_steps(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, teach = [], train_hgr.teacher_targets
    monkeypatch.setattr(train_hgr, "teacher_targets", lambda *args: (calls.append(1), teach(*args))[1])
    train(tmp_path, steps=6, teacher_reuse=3, gradient_accumulation=2)
    assert len(calls) == 2 * 2


def test_the_denoiser_is_held_in_the_precision_of_the_passes(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of bf16 the losses are those of float32 weights, which autocast casts in every pass."""
    loaded: list[Backbone] = []

    def load(*arguments: object) -> Backbone:
        loaded.append(load_backbone(*arguments))
        return loaded[-1]

    monkeypatch.setattr(train_hgr, "load_backbone", load)
    runs = [
        train(tmp_path / dtype, steps=4, mixed_precision="bf16", base_dtype=dtype)
        for dtype in ("auto", "float32")
    ]
    assert [backbone.denoiser.dtype for backbone in loaded] == [torch.bfloat16, torch.float32]
    for line, other in zip(*(read_lines(run / "metrics.jsonl") for run in runs), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=0.02)


def test_the_average_is_what_is_validated_and_saved(train: Run, tmp_path: Path) -> None:
    settings = {"steps": 6, "validate_every": 6}
    plain = train(tmp_path / "plain", **settings)
    averaged = train(tmp_path / "averaged", ema_decay=0.9, **settings)
    assert (plain / "metrics.jsonl").read_text() == (averaged / "metrics.jsonl").read_text()
    assert read_lines(plain / "validation.jsonl") != read_lines(averaged / "validation.jsonl")
    first, second = (load_file(out / "hgr" / "model.safetensors") for out in (plain, averaged))
    assert not torch.equal(first["project_out.weight"], second["project_out.weight"])


def test_a_run_without_gain_stops_with_an_alarm_and_stays_stopped(
    train: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "lr": 0.0,
        "warm_steps": 0,
        "clean_ramp": 0.25,
        "steps": 12,
        "validate_every": 1,
        "patience": 2,
    }
    with caplog.at_level(logging.WARNING, logger="train_hgr"):
        out = train(tmp_path, **settings)
    said = [record.getMessage() for record in caplog.records if "changes nothing" in record.getMessage()]
    assert [message.split(":")[0] for message in said] == ["step 3", "step 4", "step 5", "step 6"]
    validations = read_lines(out / "validation.jsonl")
    assert [line["residual"] for line in validations] == pytest.approx([1.0] * 6)
    run = json.loads((out / "run.json").read_text())
    # The ramp is over at step index 3: that validation is the first best one, and two more are no better.
    assert run["steps_done"] == 6
    assert run["stopped"] == "converged at step 6: 2 validations without 1% less loss"
    assert run["alarm"] == said[-1]

    again = train(tmp_path, **settings)
    assert read_lines(again / "validation.jsonl") == validations
    later = json.loads((again / "run.json").read_text())
    assert {name: later[name] for name in ("steps_done", "stopped", "alarm")} == {
        name: run[name] for name in ("steps_done", "stopped", "alarm")
    }
    train(tmp_path, **{**settings, "patience": 0})
    assert json.loads((out / "run.json").read_text())["steps_done"] == 12


@pytest.mark.slow
def test_two_processes_follow_one(
    train: Run, tmp_path: Path, tiny_pipeline: Path, prompts_file: Path, repository: Path
) -> None:
    settings = {"steps": 4, "validate_every": 2, "lr": 1e-4, "batch_size": 8, "ema_decay": 0.9}
    alone = train(tmp_path / "alone", **settings)
    options = {
        "prompts": prompts_file,
        "model": tiny_pipeline,
        "output_dir": tmp_path / "two",
        "size": "tiny",
        "warm_steps": 2,
        "picture_steps": 1,
        "mixed_precision": "no",
        **settings,
        "batch_size": 4,
    }
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file"),
        *(str(repository / "launch" / "cpu_ddp.yaml"), str(repository / "recipes" / "train_hgr.py")),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(repository),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "run.json").read_text())["accelerate"]["num_processes"] == 2
    assert_close_runs(alone, tmp_path / "two")
