"""The estimate beside real steps, what options do to it, and the command."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from safetune.cli import main
from safetune.estimation.architectures import Architecture, find_architecture
from safetune.estimation.estimate import ALLOWANCE, FRAGMENTS, Estimate, estimate, with_processes
from safetune.estimation.report import as_text, verdict
from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.plan import Launch
from tests.estimation.measured import PARTS, measure

TOLERANCE = 0.01
"""Of every part, beside the tensors that real steps hold."""

ROOT = Path(__file__).parents[2]
OPTIONS: list[dict[str, object]] = [
    {},
    {"gradient_checkpointing": True},
    {"method": "dora", "targets": "linear+conv"},
    {"mixed_precision": "bf16"},
    {"method": "full"},
    {"method": "full", "mixed_precision": "bf16", "gradient_checkpointing": True},
]


@pytest.fixture(scope="module")
def tiny(tiny_pipeline: Path) -> Architecture:
    return find_architecture(str(tiny_pipeline))


def options(**changed: object) -> FinetuneConfig:
    return FinetuneConfig(data="none", hgr=Path("none"), batch_size=4, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed", OPTIONS, ids=lambda changed: " ".join(map(str, changed.values())) or "lora"
)
def test_agrees_with_real_steps(changed: dict[str, object], tiny: Architecture) -> None:
    config = options(**changed)
    found, _ = measure(tiny, config)
    said = estimate(config, tiny, Launch(), on_cuda=False)
    for part in PARTS:
        assert said.parts[part] == pytest.approx(found[part], rel=TOLERANCE), part
    assert said.parts["activations"] > 0


def test_phases_are_sums_of_their_parts(tiny: Architecture) -> None:
    said = estimate(options(accumulation=2, safe_pictures=0.0), tiny, Launch())
    parts = said.parts
    loaded = parts["text encoders"] + parts["autoencoder"] + parts["redirector"]
    assert list(said.phases) == ["encoding", "training"]
    trained = parts["weights"] + parts["optimizer states"] + parts["redirector"] + parts["gradients"]
    assert said.phases["training"] == trained + max(parts["activations"], parts["teacher's pass"])
    base = 2 * said.parameters["denoiser"]  # bf16
    assert said.phases["encoding"] == pytest.approx(base + loaded + parts["encoding"], rel=0.01)
    assert said.allocated == max(said.phases.values())
    assert said.peak == int(said.allocated * (1 + FRAGMENTS) + ALLOWANCE * 2**30)


@pytest.mark.slow
def test_what_options_save(tiny: Architecture) -> None:
    full = estimate(options(method="full"), tiny, Launch())
    cached = estimate(options(method="full", cache_targets=2), tiny, Launch())
    assert (
        full.parts["teacher's copy"] == 2 * full.parameters["denoiser"] and not cached.parts["teacher's copy"]
    )
    assert "copying the teacher" in full.phases and "caching targets" in cached.phases
    assert full.parameters["trained"] == full.parameters["denoiser"]
    assert cached.phases["training"] < full.phases["training"]
    lora = estimate(options(), tiny, Launch())
    assert lora.parameters["trained"] < full.parameters["trained"] / 5
    assert lora.parts["weights"] < full.parts["weights"]
    spared = estimate(options(gradient_checkpointing=True), tiny, Launch())
    assert spared.parts["activations"] < 0.9 * lora.parts["activations"]
    half = estimate(replace(options(), batch_size=2), tiny, Launch())
    assert half.parts["activations"] == pytest.approx(lora.parts["activations"] / 2, rel=0.1)
    quantized = estimate(options(quantization="4bit"), tiny, Launch())
    assert quantized.parts["weights"] < lora.parts["weights"]
    watched = estimate(options(validate_every=5), tiny, Launch())
    assert set(watched.phases) - set(lora.phases) == {"validation"}


def test_gradients_come_as_activations_go(tiny: Architecture) -> None:
    """Without accumulation no gradient lies there when a pass begins."""
    once, twice = (estimate(options(method="full", accumulation=count), tiny, Launch()) for count in (1, 2))
    assert once.parts == twice.parts
    assert once.phases["training"] < twice.phases["training"]


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_modes(mode: str, tiny_sd3: Path) -> None:
    launch = Launch(mode, 4, "bf16")
    said = estimate(options(method="full"), find_architecture(str(tiny_sd3)), launch)
    alone = estimate(options(method="full"), find_architecture(str(tiny_sd3)), Launch())
    assert said.parts["buffers of sharing"] > 0
    if mode == "ddp":
        assert said.phases["training"] > alone.phases["training"]
    else:
        assert said.parts["optimizer states"] < alone.parts["optimizer states"]


def test_precision_of_the_launch_file_goes_before_the_guess(tiny: Architecture) -> None:
    said = [
        estimate(options(mixed_precision=given), tiny, Launch(mixed_precision=launched)).precision
        for given, launched in (("auto", "no"), ("no", "no"), ("auto", "fp16"))
    ]
    assert said == ["bf16", "no", "fp16"]


def test_the_redirector_of_the_config_is_weighed(tiny: Architecture, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1234))
    assert estimate(replace(options(), hgr=tmp_path), tiny, Launch()).parts["redirector"] == 1234


def test_mixes_that_do_not_work_are_refused(tiny: Architecture, tiny_sd3: Path) -> None:
    with pytest.raises(ValueError, match="method full with quantization 4bit"):
        estimate(options(method="full", quantization="4bit"), tiny, Launch())
    with pytest.raises(ValueError, match="has no convolutions"):
        estimate(options(targets="linear+conv"), find_architecture(str(tiny_sd3)), Launch())


def test_number_of_gpus() -> None:
    assert with_processes(Launch(), None) == Launch()
    assert with_processes(Launch(), 4) == Launch("ddp", 4)
    assert with_processes(Launch("ddp", 4), 1) == Launch()
    assert with_processes(Launch("zero3", 8, "bf16"), 2) == Launch("zero3", 2, "bf16")
    with pytest.raises(ValueError, match="--gpus 0: give 1 or more"):
        with_processes(Launch(), 0)


def test_verdicts() -> None:
    assert [verdict(size * 2**30, 10) for size in (1, 9, 9.5, 10.5)] == ["fits", "fits", "tight", "too small"]


def test_the_page_names_the_highest_phase() -> None:
    phases = {"encoding": 3 * 2**30, "training": 2 * 2**30}
    parts = {"weights": 2**30, "teacher's copy": 0}
    said = Estimate(
        "sd15", Launch("zero2", 4), "bf16", 512, {"denoiser": 10**9, "trained": 10**7}, parts, phases
    )
    page = as_text(said)
    assert "4 GPUs, zero2" in page and "trained 10.00 M (1.00%)" in page
    assert "encoding     3.00 GiB  <- highest" in page and "teacher's copy" not in page
    assert "expected peak per GPU: 3.90 GiB, in encoding" in page  # 3 * 1.05 + 0.75
    assert "  8 GB  fits" in page


def forbid(*_: object) -> None:
    raise AssertionError("the network was asked for")


def test_the_command(
    tmp_path: Path,
    tiny_pipeline: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket.socket, "connect", forbid)
    monkeypatch.setattr(socket, "getaddrinfo", forbid)
    config = tmp_path / "run.yaml"
    config.write_text(f"data: none\nhgr: none\nmodel: {tiny_pipeline}\n")
    assert main(["estimate", str(config)]) == 0
    assert "expected peak per GPU: " in capsys.readouterr().out
    config.write_text("data: none\nhgr: none\nmodel: someone/model\nbatch_size: 1\nresolution: 64\n")
    assert main(["estimate", str(config)]) == 2
    assert "--architecture sd15 or sd21" in capsys.readouterr().err
    launch = str(ROOT / "launch" / "zero3.yaml")
    options = ["--architecture=sd15", "--gpus=4", f"--launch={launch}", "--json"]
    assert main(["estimate", str(config), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["launch"] == {"mode": "zero3", "processes": 4, "mixed_precision": "bf16", "offload": False}
    assert said["parameters"]["denoiser"] == 859_520_964
    assert said["gpus"]["8"] == "fits" and said["peak"] > said["allocated"] == max(said["phases"].values())
    config.write_text("data: none\nhgr: none\nbatchsize: 1\n")
    with pytest.raises(SystemExit):
        main(["estimate", str(config)])
    assert "batchsize (did you mean batch_size?)" in capsys.readouterr().err


@pytest.mark.slow
def test_sdxl_full_takes_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", forbid)
    started = time.monotonic()
    assert main(["estimate", str(ROOT / "recipes/configs/sdxl_finetune_full.yaml")]) == 0
    assert time.monotonic() - started < 60
    assert "denoiser 2567.46 M, trained 2567.46 M (100.00%)" in capsys.readouterr().out
