"""Train the Harmful Guidance Redirector (HGR) of a model on pairs of prompts and safe rewritings.

    accelerate launch --config_file launch/cpu.yaml recipes/train_hgr.py --config recipes/configs/tinysd_hgr.yaml

The data is any pair set with the columns `text`, `safe_prompt` (equal to `text` for a clean prompt), `category`
and `concept` (both empty for a clean prompt). Run it again and it goes on from the last checkpoint.
"""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from safetune.backbone import load_backbone
from safetune.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint
from safetune.conditioning import Conditioning, shift, squared_norm
from safetune.config import parse_config
from safetune.diffusion import seeded_noise, signal_weight
from safetune.files import replace_folder
from safetune.hgr import HGR
from safetune.hgr.objective import redirection_loss
from safetune.hgr.training import set_prototypes, teacher_targets, unfound_concepts, warm_start
from safetune.pairs import image_tensor, load_pairs
from safetune.precision import resolve_precision
from safetune.runs import Metrics, check_world_size, write_run

logger = logging.getLogger("train_hgr")


@dataclass(frozen=True)
class HGRConfig:
    data: str
    """Pair set: image folder with metadata.jsonl, folder of parquet files, or hub name."""
    model: str = "tinysd"
    """Base model: "tinysd", a folder in diffusers layout, or a hub name."""
    output_dir: Path = Path("runs/hgr")
    """Run folder; the redirector is written to output_dir/hgr."""
    resolution: int = 64
    """Pictures are scaled and cut to this many pixels a side."""
    width: int = 128
    """Width of the redirector's Transformer."""
    layers: int = 2
    """Layers of the redirector's Transformer."""
    warm_steps: int = 300
    """Steps without the denoiser that first fit delta to c - s(c)."""
    steps: int = 900
    """Optimizer steps."""
    batch_size: int = 16
    """Pairs per step and process; half harmful, half clean."""
    lr: float = 1.2e-3
    """Peak learning rate, warmed up over 5% of the steps and decayed by a cosine."""
    guidance_scale: float = 5.0
    """Guidance scale w (more than 1) that the target is exact for."""
    strength: float = 1.5
    """Factor on the redirection of harmful prompts; 1 reproduces the safe rewriting."""
    clean_weight: float = 4.0
    """Weight of the error on clean prompts."""
    delta_weight: float = 0.0005
    """Weight of the squared norm of delta on clean prompts."""
    clean_ramp: float = 0.4
    """Share of the steps over which both clean weights rise from zero; from the start they would hold delta at
    zero for harmful concepts that are not found yet."""
    min_timestep: int = 150
    """Smallest timestep that is drawn: below it there is next to no content left to decide."""
    weight_cap: float = 50.0
    """Largest loss weight of a timestep; weights are 1 / a_t, so that noisy timesteps count too."""
    seed: int = 0
    """Seed of weights, order, timesteps and noise."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Precision of the passes; auto takes what the hardware is fast in."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if self.guidance_scale <= 1:
            raise ValueError(
                f"guidance_scale {self.guidance_scale}: give more than 1, there is no guidance below"
            )
        if self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size}: give an even number, half of it is clean")


def main() -> None:
    config = parse_config(HGRConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = Accelerator(mixed_precision=resolve_precision(config.mixed_precision))
    check_world_size(accelerator)
    set_seed(config.seed)
    started = time.time()

    backbone = load_backbone(config.model, accelerator.device)
    dataset = load_pairs(config.data)
    latents = backbone.encode_images(image_tensor(dataset, config.resolution))
    prompts, safe_prompts = (
        backbone.encode_prompts(dataset["text"]),
        backbone.encode_prompts(dataset["safe_prompt"]),
    )
    null = backbone.null()
    backbone.free_encoders()
    concept_names = list(dataset["concept"])
    category_of = dict(zip(concept_names, dataset["category"], strict=True))
    concepts = sorted(name for name in category_of if name)
    harmful_rows = np.array([row for row, name in enumerate(concept_names) if name])
    clean_rows = np.array([row for row, name in enumerate(concept_names) if not name])
    if not len(harmful_rows) or not len(clean_rows):
        raise SystemExit(
            f"{config.data}: harmful and clean pairs are needed, got {len(harmful_rows)} harmful of {len(dataset)}"
        )

    hgr = HGR(
        text_width=prompts.embeds.shape[2],
        max_tokens=prompts.embeds.shape[1],
        width=config.width,
        layers=config.layers,
        pooled_width=0 if prompts.pooled is None else prompts.pooled.shape[1],
        base_fingerprint=backbone.fingerprint,
        concepts=concepts,
        categories=[category_of[name] for name in concepts],
        target_scale=config.strength * config.guidance_scale / (config.guidance_scale - 1),
    ).to(accelerator.device)
    harmful_prompts = torch.tensor([bool(name) for name in concept_names], device=accelerator.device)
    checkpoints = config.output_dir / "checkpoints"
    if not last_checkpoint(checkpoints)[0]:
        with accelerator.autocast():
            left = warm_start(
                hgr, prompts, safe_prompts, harmful_prompts, config.warm_steps, seed=config.seed
            )
        logger.info("warm start: %d steps, %.0f%% of c - s(c) is left", config.warm_steps, 100 * left)
    optimizer = torch.optim.AdamW(hgr.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.steps // 20, config.steps)
    hgr, optimizer = accelerator.prepare(hgr, optimizer)
    params = [p for p in hgr.parameters() if p.requires_grad]
    accelerator.register_for_checkpointing(schedule)
    first = load_checkpoint(accelerator, checkpoints)
    metrics = Metrics(accelerator, config.output_dir / "metrics.jsonl", first)
    logger.info(
        "HGR: %.2f M parameters, %d harmful and %d clean pairs, %d concepts, batch %d x %d, %s, steps %d to %d, into %s",
        sum(p.numel() for p in params) / 1e6,
        len(harmful_rows),
        len(clean_rows),
        len(concepts),
        config.batch_size,
        accelerator.num_processes,
        accelerator.mixed_precision,
        first,
        config.steps,
        config.output_dir,
    )

    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc="train-hgr",
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        rows, timesteps, seeds = draw_batch(config, accelerator, harmful_rows, clean_rows, step)
        harmful = harmful_prompts[rows]
        x0, t = latents[rows], timesteps.to(accelerator.device)
        noisy = backbone.add_noise(x0, seeded_noise(tuple(x0.shape[1:]), seeds).to(x0), t)
        batch, safe = prompts.select(rows), safe_prompts.select(rows)
        with accelerator.autocast():
            target = teacher_targets(
                backbone, noisy, t, batch, safe, null, harmful, config.guidance_scale, config.strength
            )
            delta = Conditioning(*hgr(batch.embeds))
            predicted = backbone.predict(noisy, t, shift(null, delta))
        ramp = min(1.0, step / max(1.0, config.clean_ramp * config.steps))
        loss, scalars = redirection_loss(
            predicted,
            target,
            squared_norm(delta),
            harmful,
            config.clean_weight * ramp,
            config.delta_weight * ramp,
            signal_weight(t, backbone.alphas_cumprod, config.weight_cap),
        )
        accelerator.backward(loss.mean())
        scalars["grad_norm"] = accelerator.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        scalars["loss"] = loss.detach().mean()
        shown = metrics.log(step, scalars)
        bar.set_postfix({name: f"{shown[name]:.4f}" for name in ("harmful_error", "clean_error")})
        if (step + 1) % config.checkpoint_every == 0:
            save_checkpoint(accelerator, checkpoints, step + 1)

    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(hgr).float()
        set_prototypes(trained, prompts, concept_names)
        if unfound := unfound_concepts(trained):
            logger.warning(
                "not found, so neither guided nor labelled: %s. Give more pairs of them, or train longer",
                ", ".join(unfound),
            )
        with replace_folder(config.output_dir / "hgr") as temporary:
            trained.save_pretrained(temporary)
        write_run(config.output_dir, asdict(config), accelerator, dataset._fingerprint, time.time() - started)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def draw_batch(
    config: HGRConfig, accelerator: Accelerator, harmful_rows: np.ndarray, clean_rows: np.ndarray, step: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Rows, timesteps and noise seeds of this process at a step: a function of seed and step alone."""
    rng = np.random.default_rng([config.seed, step])
    count = config.batch_size * accelerator.num_processes
    rows = np.stack(
        [rng.choice(harmful_rows, count // 2), rng.choice(clean_rows, count // 2)], axis=1
    ).flatten()
    timesteps, seeds = rng.integers(config.min_timestep, 1000, count), rng.integers(0, 2**31, count)
    mine = slice(
        accelerator.process_index * config.batch_size, (accelerator.process_index + 1) * config.batch_size
    )
    return (
        torch.from_numpy(rows[mine]),
        torch.from_numpy(timesteps[mine]),
        [int(seed) for seed in seeds[mine]],
    )


if __name__ == "__main__":
    main()
