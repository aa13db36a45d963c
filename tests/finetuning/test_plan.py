"""Mixes that do not work are refused, all at once, with their alternative; what launchers say is read."""

import json
from pathlib import Path

import pytest

from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.plan import Launch, check_plan, launch_from_environment, launch_of_file

ROOT = Path(__file__).parents[2]

WORKS: dict[str, object] = {
    "method": "lora",
    "quantization": "none",
    "optimizer": "adamw",
    "targets": "attention",
    "teacher": "auto",
    "cache_targets": 0,
    "base_dtype": "auto",
}

REFUSED: list[tuple[dict[str, object], str]] = [
    ({"teacher": "copy"}, "method lora with teacher copy: .* give teacher auto"),
    ({"method": "dora", "teacher": "copy"}, "method dora with teacher copy"),
    ({"method": "full", "quantization": "4bit"}, "weights of 4 bits take no gradient; give method lora, or"),
    ({"method": "full", "quantization": "8bit"}, "method full with quantization 8bit: weights of 8 bits"),
    (
        {"method": "full", "teacher": "adapters-off"},
        "there is no adapter.* give teacher auto, or cache_targets 4",
    ),
    (
        {"method": "full", "teacher": "copy", "cache_targets": 4},
        "teacher copy with cache_targets 4: nobody asks",
    ),
    (
        {"method": "full", "base_dtype": "float16"},
        "method full with base_dtype float16: .* give base_dtype auto",
    ),
    ({"method": "full", "base_dtype": "bfloat16"}, "method full with base_dtype bfloat16: small updates"),
    ({"targets": "linear+conv", "family": "stable-diffusion-3"}, "has no convolutions; give targets linear"),
    (
        {"launch": Launch("zero3", 2), "quantization": "4bit"},
        "ZeRO-3 with quantization 4bit: .* zero2 or ddp",
    ),
    ({"launch": Launch("zero3", 2), "quantization": "8bit"}, "ZeRO-3 with quantization 8bit"),
    ({"launch": Launch("zero3", 2), "method": "dora"}, "ZeRO-3 with method dora: .* zero2 or fsdp2, or give"),
    (
        {"launch": Launch("fsdp2", 2), "quantization": "8bit"},
        "FSDP2 with quantization 8bit: .* give quantization",
    ),
    (
        {"launch": Launch("fsdp2", 2), "optimizer": "adamw8bit"},
        "FSDP2 with optimizer adamw8bit: .* adamw, whose",
    ),
    ({"launch": Launch("fsdp2", 2), "optimizer": "paged_adamw"}, "FSDP2 with optimizer paged_adamw"),
    (
        {"launch": Launch("zero2", 2, offload=True), "optimizer": "adamw8bit"},
        "CPU offload with optimizer adamw8bit: .* give optimizer adamw, or launch without offload",
    ),
    (
        {"launch": Launch("zero3", 2, offload=True), "optimizer": "paged_adamw8bit"},
        "CPU offload with optimizer paged_adamw8bit",
    ),
]

ALLOWED: list[dict[str, object]] = [
    {},
    {"teacher": "adapters-off"},
    {"method": "full", "teacher": "copy"},
    {"method": "full", "cache_targets": 4},
    {"method": "full", "base_dtype": "float32"},
    {"base_dtype": "bfloat16", "quantization": "4bit", "optimizer": "adamw8bit"},
    {"targets": "linear+conv", "family": "stable-diffusion-xl"},
    {"targets": "linear", "family": "stable-diffusion-3"},
    {"launch": Launch("ddp", 2), "quantization": "8bit", "optimizer": "paged_adamw8bit"},
    {"launch": Launch("fsdp2", 2), "quantization": "4bit"},
    {"launch": Launch("fsdp2", 2), "method": "dora"},
    {"launch": Launch("zero2", 2), "quantization": "4bit", "optimizer": "adamw8bit"},
    {"launch": Launch("zero2", 2, offload=True), "method": "full"},
    {"launch": Launch("zero3", 2), "method": "full", "optimizer": "adamw8bit"},
]


def check(changed: dict[str, object]) -> None:
    """check_plan of WORKS with these options, launched as "launch" says, of the family "family"."""
    options = {**WORKS, **changed}
    launch, family = options.pop("launch", Launch()), options.pop("family", None)
    check_plan(FinetuneConfig("pool", Path("hgr"), **options), launch, family)  # type: ignore[arg-type]


def name(changed: dict[str, object]) -> str:
    return "-".join(value.mode if isinstance(value, Launch) else str(value) for value in changed.values())


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[name(changed) for changed, _ in REFUSED])
def test_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as mistake:
        check(changed)
    assert str(mistake.value).count("\n- ") == 1


@pytest.mark.parametrize("changed", ALLOWED, ids=name)
def test_allowed(changed: dict[str, object]) -> None:
    check(changed)


def test_every_mistake_at_once() -> None:
    changed = {
        "method": "full",
        "quantization": "4bit",
        "base_dtype": "float16",
        "launch": Launch("zero3", 2),
    }
    with pytest.raises(ValueError, match="these options do not go together:\n- ") as mistake:
        check(changed)
    assert str(mistake.value).count("\n- ") == 3


LAUNCHES = {
    "cpu": Launch(),
    "cpu_ddp": Launch("ddp", 2),
    "single_gpu": Launch("single", 1, "bf16"),
    "ddp": Launch("ddp", 8, "bf16"),
    "multi_node": Launch("ddp", 16, "bf16"),
    "fsdp2": Launch("fsdp2", 8, "bf16"),
    "zero1": Launch("zero1", 8, "bf16"),
    "zero2": Launch("zero2", 8, "bf16"),
    "zero2_offload": Launch("zero2", 2, "bf16", offload=True),
    "zero3": Launch("zero3", 8, "bf16"),
}


def test_every_launch_file_has_its_expectation() -> None:
    assert {path.stem for path in (ROOT / "launch").glob("*.yaml")} == set(LAUNCHES)


@pytest.mark.parametrize("stem", LAUNCHES)
def test_launch_files(stem: str) -> None:
    launch = launch_of_file(ROOT / "launch" / f"{stem}.yaml")
    assert launch == LAUNCHES[stem]
    assert launch.is_zero == stem.startswith("zero")
    assert launch.shards_weights == (stem in ("fsdp2", "zero3"))


def test_a_missing_launch_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: there is no such launch file; those of safetune"):
        launch_of_file(tmp_path / "none.yaml")


def test_a_launch_file_that_names_a_deepspeed_file(tmp_path: Path) -> None:
    deepspeed = tmp_path / "deepspeed.json"
    deepspeed.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}))
    path = tmp_path / "launch.yaml"
    path.write_text(
        f"distributed_type: DEEPSPEED\nnum_processes: 2\n"
        f"deepspeed_config: {{deepspeed_config_file: {deepspeed}}}\n"
    )
    assert launch_of_file(path) == Launch("zero3", 2, "no", offload=True)
    deepspeed.write_text(
        json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}})
    )
    assert launch_of_file(path) == Launch("zero2", 2)


ENVIRONMENTS: list[tuple[dict[str, str], Launch]] = [
    ({}, Launch()),
    ({"WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}, Launch("ddp", 2, "bf16")),
    (
        {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"},
        Launch("fsdp2", 2, "no", True),
    ),
    ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "false"}, Launch("fsdp2", 2)),
    (
        {
            "WORLD_SIZE": "2",
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
            "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
        },
        Launch("zero3", 2, "no", True),
    ),
    (
        {
            "WORLD_SIZE": "2",
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1",
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        },
        Launch("zero1", 2),
    ),
]


@pytest.mark.parametrize(("environ", "launch"), ENVIRONMENTS, ids=lambda value: getattr(value, "mode", ""))
def test_environments_of_accelerate(environ: dict[str, str], launch: Launch) -> None:
    assert launch_from_environment(environ) == launch
