"""What a step of fine-tuning costs: ours, teacher asked or cached, against a plain LoRA step and ESD's.

    python benchmarks/engine.py --json engine.json   # a UNet of 30 M parameters
    python benchmarks/engine.py --sd15 --rounds 2    # one of Stable Diffusion 1.5's size: 8 GB, half an hour

All take the same UNet, adapter, batch and optimizer, in turn, in one run; ratios are medians of the pairs of
a round, so that a machine whose speed drifts does not bend them. Peak memory is that of a process of its own
for each kind. The peers are written after diffusers' train_text_to_image_lora.py, and after the training step
of ESD (arXiv 2303.07345), which draws a part of a picture by guided sampling in every step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from safetune.backbone import load_backbone
from safetune.backbone.stable_diffusion import StableDiffusionBackbone
from safetune.conditioning import Conditioning
from safetune.data.shards import stacked_rows
from safetune.diffusion import cfg
from safetune.files import write_json
from safetune.finetuning.adapters import add_lora, teacher, trainable
from safetune.finetuning.objective import teacher_targets, timestep_weight, unlearning_loss
from safetune.hgr import HGR

SIZES = {
    "small": (
        {"sample_size": 32, "block_out_channels": (96, 160, 224, 224), "cross_attention_dim": 256},
        256,
        4,
    ),
    "sd15": ({"sample_size": 64, "cross_attention_dim": 768}, 768, 2),
}
"""UNet, text width and batch."""
TOKENS, RANK, ESD_STEPS, ESD_SCALE = 77, 8, 50, 3.0
KINDS = ("plain", "asked", "cached", "esd")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds, after a warm-up that is not counted")
    parser.add_argument(
        "--sd15", action="store_true", help="a UNet of SD 1.5's size with gradient checkpointing"
    )
    parser.add_argument("--json", type=Path, help="file that receives seconds, ratios and memory")
    parser.add_argument(
        "--memory-of", choices=KINDS, help="print the peak memory of two steps of a kind, in bytes"
    )
    args = parser.parse_args()
    size = "sd15" if args.sd15 else "small"
    with tempfile.TemporaryDirectory() as folder:
        if args.memory_of:
            step = build_steps(size, Path(folder))[args.memory_of]
            for _ in range(2):
                step()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return
        memory = {kind: peak_memory(kind, args.sd15) for kind in KINDS[:3]}
        steps = build_steps(size, Path(folder))
        results = {"size": size, "batch": SIZES[size][2], **measure(steps, args.rounds)}
    for kind, size_in_bytes in memory.items():
        results[f"{kind}_peak_gb"] = size_in_bytes / 1e9
        results[f"{kind}_memory_over_plain"] = size_in_bytes / memory["plain"]
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, results)


def peak_memory(kind: str, is_sd15: bool) -> int:
    """Peak resident memory in bytes of a process that takes two steps of one kind."""
    command = [sys.executable, __file__, "--memory-of", kind, *(["--sd15"] if is_sd15 else [])]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def build_steps(size: str, folder: Path) -> dict[str, Callable[[], None]]:
    """One training step of each kind, all on the same student; cached targets are written to `folder`."""
    torch.manual_seed(0)
    options, width, count = SIZES[size]
    pipeline = load_backbone("tinysd").pipeline
    pipeline.unet = UNet2DConditionModel(**options)
    backbone = StableDiffusionBackbone(pipeline)
    unet = pipeline.unet
    add_lora(unet, RANK, RANK, "attention")
    unet.train()
    if size == "sd15":
        unet.enable_gradient_checkpointing()
    params = trainable(unet)
    optimizer = torch.optim.AdamW(params, lr=1e-4)
    hgr = HGR(width, TOKENS).eval().requires_grad_(False)
    torch.nn.init.normal_(hgr.project_out.weight, std=0.02)
    side = options["sample_size"]
    latents = torch.randn(count, 4, side, side)
    prompts, null = (
        Conditioning(torch.randn(count, TOKENS, width)),
        Conditioning(torch.randn(1, TOKENS, width)),
    )
    harm = (torch.arange(count) % 2).float()
    weight = torch.where(harm >= 0.5, 1.0, 2.0)
    targets_file = folder / "part-00000.safetensors"
    save_file({"targets": torch.randn(count, 4, side, side)}, targets_file)
    targets = stacked_rows([targets_file], "targets")

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (count,))
        return backbone.add_noise(latents, noise, t), t, noise

    def learn(loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        noisy, t, noise = draw()
        predicted = unet(noisy, t, encoder_hidden_states=prompts.embeds, return_dict=False)[0]
        learn(F.mse_loss(predicted.float(), noise.float(), reduction="mean"))

    def ours(target_of: Callable[[Tensor, Tensor], Tensor]) -> None:
        noisy, t, _ = draw()
        target = target_of(noisy, t)
        predicted = backbone.predict(noisy, t, prompts, unet)
        by_time = timestep_weight(backbone, t, "signal", 50.0, 5.0)
        learn(unlearning_loss(predicted, target, by_time, weight)[0].mean())

    def asked(noisy: Tensor, t: Tensor) -> Tensor:
        with teacher(unet):
            return teacher_targets(backbone, noisy, t, prompts, hgr.redirect(prompts, null), null, harm, 0.8)

    def esd() -> None:
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(ESD_STEPS)
        last = ESD_STEPS // 2  # the mean of the count that ESD draws, so that few rounds tell its cost
        both = torch.cat([null.expand(count).embeds, prompts.embeds])
        with torch.no_grad():
            x = torch.randn_like(latents)
            for t in scheduler.timesteps[:last]:
                eps = unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample
                x = scheduler.step(cfg(*eps.chunk(2), ESD_SCALE), t, x).prev_sample
            t = scheduler.timesteps[last]
            with teacher(unet):
                uncond, cond = unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        predicted = unet(x, t, encoder_hidden_states=prompts.embeds).sample
        learn(F.mse_loss(predicted, uncond - (cond - uncond)))

    return {
        "plain": plain,
        "asked": lambda: ours(asked),
        "cached": lambda: ours(lambda noisy, t: targets.read(range(count))),
        "esd": esd,
    }


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each kind, in turn in every round, and median ratios to the plain step."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name in KINDS[:3]:  # a warm-up; ESD's passes are those of the others
        steps[name]()
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    found = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    for name in KINDS[1:]:
        pairs = zip(seconds[name], seconds["plain"], strict=True)
        found[f"{name}_over_plain"] = statistics.median(mine / plain for mine, plain in pairs)
    return found


if __name__ == "__main__":
    main()
