"""What real training steps on a CPU hold, beside what `safetune estimate` says of them (docs/memory.md).

    python -m tests.estimation.measured [--sd15]

Each case runs in a process of its own: parts as sizes of the tensors that are alive, and the peak of the
process's memory above what it had before the denoiser was built.
"""

import argparse
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from safetune.estimation.architectures import Architecture, find_architecture
from safetune.estimation.estimate import Estimate, estimate
from safetune.estimation.tracking import LiveBytes
from safetune.finetuning.adapters import add_lora, frozen_copy, teacher, trainable
from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.optimizers import build_optimizer
from safetune.finetuning.plan import Launch
from safetune.precision import PASSES, use_plain_backward

PARTS = ("weights", "gradients", "optimizer states", "activations", "teacher's copy", "teacher's pass")

# The UNet of benchmarks/engine.py with 29 M parameters.
SMALL = {"sample_size": 32, "block_out_channels": (96, 160, 224, 224), "cross_attention_dim": 256}

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "TinySD, LoRA, batch 16": ("tinysd", {"batch_size": 16, "rank": 64, "targets": "cross-attention"}),
    "TinySD, full, batch 8": ("tinysd", {"batch_size": 8, "method": "full"}),
    "29 M, LoRA, batch 4": ("small", {"batch_size": 4}),
    "29 M, LoRA, batch 4, checkpointing": ("small", {"batch_size": 4, "gradient_checkpointing": True}),
    "29 M, DoRA, batch 4": ("small", {"batch_size": 4, "method": "dora"}),
    "29 M, LoRA, batch 4, bf16": ("small", {"batch_size": 4, "mixed_precision": "bf16"}),
    "29 M, full, batch 2": ("small", {"batch_size": 2, "method": "full"}),
    "29 M, full, batch 2, bf16": ("small", {"batch_size": 2, "method": "full", "mixed_precision": "bf16"}),
    "29 M, full, batch 2, adamw8bit": (
        "small",
        {"batch_size": 2, "method": "full", "optimizer": "adamw8bit"},
    ),
    "SD 1.5, LoRA, batch 1, checkpointing": ("sd15", {"batch_size": 1, "gradient_checkpointing": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sd15", action="store_true", help="the case of SD 1.5's size alone")
    parser.add_argument("--case", choices=CASES, help="run one case in this process and print JSON")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run(args.case)))
        return
    for case in CASES:
        if case.startswith("SD 1.5") == args.sd15:
            # Freed memory goes back to the system at once: the peak is then of what was in use.
            environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            command = [sys.executable, "-m", "tests.estimation.measured", "--case", case]
            output = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout
            print(case)
            for part, (said, found) in json.loads(output.splitlines()[-1]).items():
                if found:
                    sizes = f"{said / 2**20:9.1f} MiB said{found / 2**20:9.1f} found"
                    print(f"  {part:18}{sizes}{said / found - 1:+8.1%}")


def run(case: str) -> dict[str, tuple[int, int]]:
    """Said and found bytes of each part of a case, and of the process's peak."""
    model, options = CASES[case]
    # The second step of `measure` finds gradients from before, as accumulation does.
    config = FinetuneConfig(data="none", hgr=Path("none"), accumulation=2, **options)  # type: ignore[arg-type]
    measure(find_architecture("tinysd"), replace(config, batch_size=1))  # libraries set themselves up
    architecture = architecture_of(model)
    before = memory_now()
    found, peak = measure(architecture, config)
    said = estimate(config, architecture, Launch(), on_cuda=False)
    both = {part: (said.parts[part], found[part]) for part in PARTS}
    return {**both, "process's peak": (training_bytes(said), peak - before)}


def architecture_of(model: str) -> Architecture:
    """TinySD's, that of SD 1.5, or TinySD's with the denoiser of 29 M parameters."""
    if model == "sd15":
        return find_architecture("none", "sd15")
    tiny = find_architecture("tinysd")
    if model == "tinysd":
        return tiny
    encoder = {**tiny.parts["text_encoder"], "max_position_embeddings": 77}
    return Architecture(
        "small",
        {**tiny.parts, "unet": {"_class_name": "UNet2DConditionModel", **SMALL}, "text_encoder": encoder},
    )


def training_bytes(said: Estimate) -> int:
    """The estimate's training phase without the redirector, which these steps leave out."""
    return said.phases["training"] - said.parts["redirector"]


def measure(architecture: Architecture, config: FinetuneConfig) -> tuple[dict[str, int], int]:
    """Bytes by part of two real steps with random weights, and the process's peak."""
    denoiser = UNet2DConditionModel.from_config(architecture.parts["unet"]).requires_grad_(False)
    use_plain_backward(denoiser, torch.device("cpu"))
    precision = "no" if config.mixed_precision == "auto" else config.mixed_precision
    frozen = None
    if config.method == "full":
        frozen = frozen_copy(denoiser, PASSES[precision])
        denoiser.requires_grad_(True)
    else:
        add_lora(denoiser, config.rank, config.alpha, config.targets, dora=config.method == "dora")
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    denoiser.train()
    params = trainable(denoiser)
    optimizer = build_optimizer(config.optimizer, params, 1e-4)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    latent = architecture.latent_shape(architecture.resolution)

    def inputs(rows: int) -> dict[str, torch.Tensor]:
        width = architecture.parts["unet"]["cross_attention_dim"]
        return {
            "sample": torch.randn(rows, *latent),
            "timestep": torch.full((rows,), 500),
            "encoder_hidden_states": torch.randn(rows, architecture.tokens, width),
        }

    found = {}
    for step in range(2):
        given = inputs(config.batch_size + 2 * -(-config.batch_size // 2))
        base = contextlib.nullcontext() if frozen is not None else teacher(denoiser)
        with LiveBytes() as asked, torch.no_grad(), cast, base:
            (frozen or denoiser)(**given)
        given = inputs(config.batch_size)
        with LiveBytes() as pass_:
            with cast:
                output = denoiser(**given).sample
            loss = output.float().pow(2).mean()
            del output
            loss.backward()
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        found = {
            "weights": bytes_of([*denoiser.parameters(), *denoiser.buffers()]),
            "gradients": bytes_of([param.grad for param in params]),
            "optimizer states": bytes_of([value for value in states if isinstance(value, torch.Tensor)]),
            "activations": pass_.peak,
            "teacher's copy": 0 if frozen is None else bytes_of(frozen.parameters()),
            "teacher's pass": asked.peak,
        }
        # The second step finds gradients from before: `activations` is without them.
        optimizer.zero_grad(set_to_none=step > 0)
        del loss, given
    gc.collect()
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bytes_of(tensors: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # type: ignore[attr-defined]


def memory_now() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
