"""Processes: the Accelerator of a training run, and what differs between one process, DDP, FSDP2 and ZeRO.

A launch file and a recipe can both speak of precision, accumulation and clipping. What the launch file leaves
out the recipe decides; where they disagree, a ValueError says so before anything loads.
"""

import atexit
import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from transformers.integrations import unset_hf_deepspeed_config

from safetune.precision import resolve_precision


def build_accelerator(
    mixed_precision: str,
    accumulation: int = 1,
    max_grad_norm: float | None = None,
    tracker: str = "none",
    project_dir: Path | None = None,
) -> Accelerator:
    """The Accelerator of a recipe under whatever launcher started it; gloo where there is no GPU.

    `mixed_precision` is "auto", "no", "fp16" or "bf16". ValueError when the launch file says otherwise than
    the recipe or asks for what recipes cannot do; RuntimeError when processes do not find each other.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not _has_gpu()
    precision = _agreed_precision(mixed_precision, on_cpu)
    if tracker != "none" and tracker not in [str(name) for name in get_available_trackers()]:
        raise ValueError(f"tracker {tracker}: not installed; pip install 'safetune-diffusion[track]'")
    zero = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    plugin = _deepspeed_plugin(accumulation, max_grad_norm, on_cpu) if zero else None
    gloo = on_cpu and "WORLD_SIZE" in os.environ
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _prepare_fsdp(gloo)
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=accumulation,
        # Told of the CPU accelerate would leave DeepSpeed out; not told, processes would not find each other.
        cpu=gloo and not zero,
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if gloo else None,
        log_with=None if tracker == "none" else tracker,
        project_dir=project_dir,
    )
    check_world_size(accelerator)
    launched = accelerator.gradient_accumulation_steps  # accelerate prefers the environment's
    if launched != accumulation:
        raise ValueError(_disagreement("gradient_accumulation_steps", launched, "accumulation", accumulation))
    # Else transformers would load text encoders in shards too, which nothing gathers.
    unset_hf_deepspeed_config()
    return accelerator


def prepare(
    accelerator: Accelerator, denoiser: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Accelerator.prepare for a denoiser of any family; a prepared schedule would step once per process."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        # By default all kinds of blocks that diffusers knows for the class, which TinySD has not.
        present = {type(module).__name__ for module in denoiser.modules()}
        names: Any = denoiser._no_split_modules
        plugin.transformer_cls_names_to_wrap = sorted(present.intersection(names))
    student, optimizer = accelerator.prepare(denoiser, optimizer)
    follow_precision(accelerator, denoiser)
    return student, optimizer


def follow_precision(accelerator: Accelerator, denoiser: nn.Module) -> None:
    """Where ZeRO casts weights to 16 bits and turns autocast off, have the inputs follow."""
    if mode(accelerator).startswith("zero") and accelerator.mixed_precision != "no":
        denoiser.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def mode(accelerator: Accelerator) -> str:
    """How weights and optimizer states are spread: single, ddp, fsdp2, zero1, zero2 or zero3."""
    if accelerator.distributed_type == DistributedType.NO:
        return "single"
    if accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp2"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"zero{accelerator.deepspeed_plugin.zero_stage}"
    return "ddp"


def clip_gradients(accelerator: Accelerator, params: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm`; their norm before, a plain scalar, the same on every process.

    DeepSpeed has clipped and stepped inside `accelerator.backward`, by the norm given to build_accelerator.
    """
    norm = accelerator.clip_grad_norm_(params, max_norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return torch.as_tensor(norm, dtype=torch.float32, device=accelerator.device)


def full_state(
    accelerator: Accelerator, model: nn.Module, names: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """Weights by name, whole, on the CPU in fp32 (ZeRO's master weights); every process calls it.

    The trainable ones, or those parameters and buffers whose name `names` accepts. The main process gets
    them, the others an empty dict: eight copies of a large model need not fit into one machine's memory.
    """
    state = {}
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    for name, value in unwrapped.state_dict(keep_vars=True).items():
        if names(name) if names else value.requires_grad:
            whole = _gathered(accelerator, value)
            if accelerator.is_main_process:
                dtype = torch.float32 if whole.is_floating_point() else whole.dtype
                state[name] = whole.detach().to("cpu", dtype, copy=True)
    return state


def check_world_size(accelerator: Accelerator | PartialState) -> None:
    """RuntimeError when the launcher started several processes that do not know of each other.

    Also registers the exit hook without which gloo can abort a process that has finished its work.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched but each sees {accelerator.num_processes}: on CPUs use a "
            "launch file with distributed_type MULTI_GPU and ACCELERATE_USE_CPU=true, see launch/cpu_ddp.yaml"
        )
    atexit.register(_leave_process_group)


def _leave_process_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()
        time.sleep(0.2)


def _has_gpu() -> bool:
    device = torch.accelerator.current_accelerator(check_available=True)
    return device is not None and device.type != "mps"  # mps has no collectives


def _agreed_precision(mixed_precision: str, on_cpu: bool) -> str:
    """The launch file's precision, or the recipe's where accelerate says "no": so it does by default too."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no" and mixed_precision not in ("auto", launched):
        raise ValueError(
            f"the launch file says mixed_precision: {launched}, the recipe --mixed_precision "
            f"{mixed_precision}: give the recipe --mixed_precision auto, or accelerate launch "
            f"--mixed_precision {mixed_precision}"
        )
    precision = resolve_precision(mixed_precision) if launched == "no" else launched
    if precision == "fp16" and on_cpu:
        raise ValueError("mixed_precision fp16 needs a GPU: give --mixed_precision no, or bf16")
    return precision


def _disagreement(key: str, launched: object, option: str, value: float | None) -> str:
    return (
        f"the launch file says {key}: {launched}, the recipe --{option} {value}: take {key} out of the "
        f"launch file, or give --{option} {launched}"
    )


def _prepare_fsdp(gloo: bool) -> None:
    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("the launch file asks for FSDP 1: give fsdp_version: 2, see launch/fsdp2.yaml")
    if gloo:
        # accelerate knows FSDP on GPUs only and would train without sharding.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _deepspeed_plugin(accumulation: int, max_grad_norm: float | None, on_cpu: bool) -> DeepSpeedPlugin:
    """The launch file's DeepSpeed settings, filled with the recipe's."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise ValueError(
            "ACCELERATE_USE_CPU turns DeepSpeed off: unset it; gloo is used where there is no GPU"
        )
    if on_cpu:
        import deepspeed.ops

        # Of use to inference only, and it would be compiled for a minute, where there is a compiler at all.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    plugin = DeepSpeedPlugin(zero3_init_flag=False)
    config = plugin.deepspeed_config
    if plugin.zero_stage not in (1, 2, 3):
        raise ValueError(f"zero_stage {plugin.zero_stage}: give 1, 2 or 3, or use launch/ddp.yaml")
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ValueError(f"the DeepSpeed config has a section {section}: take it out, the recipe has one")
    for key, option, value in (
        ("gradient_accumulation_steps", "accumulation", accumulation),
        ("gradient_clipping", "max_grad_norm", max_grad_norm or 0.0),
    ):
        launched = config.get(key, "auto")
        if launched not in ("auto", value):
            raise ValueError(_disagreement(key, launched, option, value))
        config[key] = value
    config["train_micro_batch_size_per_gpu"] = 1  # shown in DeepSpeed's log only
    return plugin


def _gathered(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The whole tensor of which each process may hold a part."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if not mode(accelerator).startswith("zero"):
        return value
    import deepspeed

    if value.requires_grad:
        return deepspeed.utils.safe_get_full_fp32_param(value)
    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().clone()


def _cast_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs in the precision of the weights; not timesteps (B,), which 16 bits would round."""
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        is_cast = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
        return value.to(dtype) if is_cast else value

    cast_args, cast_kwargs = tree_map(cast, (args, kwargs))
    return cast_args, cast_kwargs
