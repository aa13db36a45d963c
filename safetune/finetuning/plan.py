"""Mixes of options that do not work, named with their alternatives before anything loads.

Each was tried with two processes, or follows from the source that the message speaks of.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safetune.finetuning.config import FinetuneConfig


@dataclass(frozen=True)
class Launch:
    """How processes share the work, as the launch file says."""

    mode: str = "single"
    """single, ddp, fsdp2, zero1, zero2 or zero3."""
    processes: int = 1
    mixed_precision: str = "no"
    """no, fp16 or bf16; "no" leaves it to the recipe."""
    offload: bool = False
    """Optimizer states, or weights too, in CPU memory (DeepSpeed, or FSDP's fsdp_offload_params)."""

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed trains."""
        return self.mode.startswith("zero")

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.mode in ("fsdp2", "zero3")


def launch_from_environment(environ: Mapping[str, str] = os.environ) -> Launch:
    """What `accelerate launch` told this process by environment variables."""
    processes, precision = (
        int(environ.get("WORLD_SIZE", "1")),
        environ.get("ACCELERATE_MIXED_PRECISION", "no"),
    )
    if environ.get("ACCELERATE_USE_FSDP") == "true":
        return Launch("fsdp2", processes, precision, environ.get("FSDP_OFFLOAD_PARAMS") == "true")
    if environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        prefix = "ACCELERATE_DEEPSPEED_"
        settings = {
            "zero_stage": environ.get(f"{prefix}ZERO_STAGE"),
            "offload_optimizer_device": environ.get(f"{prefix}OFFLOAD_OPTIMIZER_DEVICE"),
            "offload_param_device": environ.get(f"{prefix}OFFLOAD_PARAM_DEVICE"),
            "deepspeed_config_file": environ.get(f"{prefix}CONFIG_FILE"),
        }
        return _zero_launch(settings, processes, precision)
    return Launch("ddp" if processes > 1 else "single", processes, precision)


def launch_of_file(path: Path) -> Launch:
    """What a launch file says; ValueError when there is none."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such launch file; those of safetune are in launch/")
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    processes, precision = int(values.get("num_processes", 1)), str(values.get("mixed_precision", "no"))
    if values.get("distributed_type") == "FSDP":
        return Launch("fsdp2", processes, precision, bool(values["fsdp_config"].get("fsdp_offload_params")))
    if values.get("distributed_type") == "DEEPSPEED":
        return _zero_launch(values["deepspeed_config"], processes, precision)
    return Launch("ddp" if processes > 1 else "single", processes, precision)


def _zero_launch(settings: Mapping[str, Any], processes: int, precision: str) -> Launch:
    """From accelerate's keys, or from the DeepSpeed file that one of them names."""
    stage: object = settings.get("zero_stage") or 2
    devices = [settings.get("offload_optimizer_device"), settings.get("offload_param_device")]
    if file := settings.get("deepspeed_config_file"):
        zero = json.loads(Path(file).read_text()).get("zero_optimization", {})
        stage = zero.get("stage", 0)
        devices = [zero.get(key, {}).get("device") for key in ("offload_optimizer", "offload_param")]
    return Launch(
        f"zero{stage}", processes, precision, any(device not in (None, "none") for device in devices)
    )


def check_plan(config: FinetuneConfig, launch: Launch, family: str | None = None) -> None:
    """ValueError that lists every mix of options that does not work, each with its alternative.

    `family` is the backbone's, where it is known.
    """
    mistakes = [
        *of_method(
            config.method, config.quantization, config.teacher, config.cache_targets, config.base_dtype
        ),
        *of_targets(config.targets, family),
        *of_launch(config.method, config.quantization, config.optimizer, launch),
    ]
    if mistakes:
        raise ValueError("these options do not go together:\n" + "\n".join(f"- {line}" for line in mistakes))


def of_method(
    method: str, quantization: str, teacher: str, cache_targets: int, base_dtype: str
) -> Iterator[str]:
    """What training all weights, or an adapter, rules out in any mode."""
    if method != "full":
        if teacher == "copy":
            yield (
                f"method {method} with teacher copy: the same weights with the adapter off are the base "
                "already; give teacher auto"
            )
        return
    if quantization != "none":
        yield (
            f"method full with quantization {quantization}: weights of {quantization[0]} bits take no "
            "gradient; give method lora, or quantization none and save memory by optimizer adamw8bit, "
            "gradient_checkpointing and cache_targets"
        )
    if teacher == "adapters-off":
        yield (
            "method full with teacher adapters-off: there is no adapter, and the trained weights are no "
            "longer the base; give teacher auto, or cache_targets 4 to have no second model in memory"
        )
    if teacher == "copy" and cache_targets:
        yield (
            f"teacher copy with cache_targets {cache_targets}: nobody asks the copy where targets are "
            "cached; give teacher auto, or cache_targets 0"
        )
    if base_dtype in ("float16", "bfloat16"):
        yield (
            f"method full with base_dtype {base_dtype}: small updates of 16-bit weights are rounded away; "
            "give base_dtype auto, and mixed_precision for fast passes"
        )


def of_targets(targets: str, family: str | None) -> Iterator[str]:
    """Groups of modules that a family does not have."""
    if targets == "linear+conv" and family == "stable-diffusion-3":
        yield "targets linear+conv: Stable Diffusion 3's transformer has no convolutions; give targets linear"


def of_launch(method: str, quantization: str, optimizer: str, launch: Launch) -> Iterator[str]:
    """What the launch file's way to share the work rules out."""
    bitsandbytes = optimizer != "adamw"
    if launch.mode == "zero3" and quantization != "none":
        yield (
            f"ZeRO-3 with quantization {quantization}: DeepSpeed takes the weights apart without the scales "
            "that belong to them; launch with zero2 or ddp (every GPU has room for a quantized base)"
        )
    if launch.mode == "zero3" and method == "dora":
        yield (
            "ZeRO-3 with method dora: it reads weights of a layer while they are spread over the processes; "
            "launch with zero2 or fsdp2, or give method lora"
        )
    if launch.mode == "fsdp2" and quantization == "8bit":
        yield (
            "FSDP2 with quantization 8bit: sharding takes the scales off bitsandbytes' weights; give "
            "quantization 4bit, or launch with ddp"
        )
    if launch.mode == "fsdp2" and bitsandbytes:
        yield (
            f"FSDP2 with optimizer {optimizer}: bitsandbytes has no kernels for sharded weights; give "
            "optimizer adamw, whose states FSDP2 shards, or launch with zero2"
        )
    if launch.is_zero and launch.offload and bitsandbytes:
        yield (
            f"CPU offload with optimizer {optimizer}: accelerate puts DeepSpeed's 32-bit CPU Adam in its "
            "place without a word; give optimizer adamw, or launch without offload"
        )
