"""Unlearn harmful directions in the denoiser with a LoRA, from the labeler's pseudo-labels alone.

    accelerate launch --config_file launch/cpu.yaml recipes/finetune.py --config recipes/configs/tinysd_finetune.yaml

The frozen teacher is the same UNet with its adapters off. Run it again and it goes on from the last checkpoint.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.checkpoints import load_checkpoint, save_checkpoint
from safetune.conditioning import Conditioning, jitter, replace_rows, shift
from safetune.config import parse_config
from safetune.diffusion import seeded_noise, signal_weight
from safetune.export.adapters import save_adapter
from safetune.export.verification import write_probe
from safetune.files import replace_folder
from safetune.finetuning.adapters import TARGETS, add_lora, teacher
from safetune.finetuning.objective import teacher_targets, unlearning_loss
from safetune.guidance import disable_safecfg, enable_safecfg
from safetune.hgr import HGR
from safetune.labeling.finished import check_redirector, read_labels
from safetune.labeling.pictures import labelled_latents
from safetune.latents import drawn_latents, native_resolution
from safetune.pairs import open_pairs
from safetune.precision import resolve_precision, use_plain_backward
from safetune.runs import Metrics, check_world_size, write_run

logger = logging.getLogger("finetune")


@dataclass(frozen=True)
class FinetuneConfig:
    data: str
    """Labelled pairs: image folder with metadata.jsonl, folder of parquet files, or hub name."""
    hgr: Path
    """Folder of the redirector that wrote the labels."""
    labels: Path | None = None
    """Folder of labels; data/labels by default."""
    model: str = "tinysd"
    """Base model: "tinysd", a folder in diffusers layout, or a hub name."""
    output_dir: Path = Path("runs/finetune")
    """Run folder; the adapter is written to output_dir/adapter."""
    resolution: int | None = None
    """Pictures are scaled and cut to this many pixels a side; the model's own by default."""
    rank: int = 16
    """Rank of the LoRA."""
    alpha: float = 16.0
    """LoRA alpha: the update is scaled by alpha / rank."""
    targets: Literal["cross-attention", "attention", "linear"] = "attention"
    """Group of modules that get a LoRA."""
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 16
    """Pairs per step and process; half harmful, half clean by pseudo-label."""
    lr: float = 1e-3
    """Peak learning rate, warmed up over 5% of the steps and decayed by a cosine."""
    guidance_scale: float = 5.0
    """Guidance scale w that the student will be sampled with; sets the default of eta."""
    eta: float | None = None
    """Strength of the redirection; (w-1)/w reproduces SafeCFG, more unlearns harder."""
    clean_weight: float = 2.0
    """Weight of the error on clean pairs."""
    empty_prompts: float = 0.1
    """Share of clean rows whose prompt is emptied, which keeps the unconditional branch."""
    safe_pictures: float = 0.7
    """Share of harmful prompts that stand beside a picture that SafeCFG draws for them: where the student's
    sampling will lead. Beside their own pictures alone it would learn to see harm instead of not to draw it."""
    picture_steps: int = 20
    """Denoising steps of those pictures."""
    prompt_noise: float = 0.5
    """Noise on prompt embeddings, up to this many standard deviations: what is unlearned then reaches beyond
    the very words of the data."""
    min_timestep: int = 100
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
        if self.targets not in TARGETS:
            raise ValueError(f"targets {self.targets!r}; allowed: {', '.join(TARGETS)}")
        if self.guidance_scale <= 1:
            raise ValueError(
                f"guidance_scale {self.guidance_scale}: give more than 1, there is no guidance below"
            )
        if self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size}: give an even number, half of it is clean")


def main() -> None:
    config = parse_config(FinetuneConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = Accelerator(mixed_precision=resolve_precision(config.mixed_precision))
    check_world_size(accelerator)
    set_seed(config.seed)
    started = time.time()
    eta = (config.guidance_scale - 1) / config.guidance_scale if config.eta is None else config.eta

    backbone = load_backbone(config.model, accelerator.device)
    use_plain_backward(backbone.denoiser, accelerator.device)
    hgr = HGR.from_pretrained(config.hgr).to(accelerator.device).eval().requires_grad_(False)
    hgr.check_base(backbone.fingerprint)
    resolution = config.resolution or native_resolution(backbone)
    try:
        source = open_pairs(config.data)
        folder = config.labels or Path(config.data) / "labels"
        labels = read_labels(folder)
        check_redirector(folder, weights_fingerprint(hgr))
        latents = labelled_latents(backbone, source, labels.key, resolution)
    except ValueError as mistake:
        raise SystemExit(f"finetune: {mistake}") from None
    harm = torch.tensor(labels.harm.to_numpy(), dtype=torch.float32, device=accelerator.device)
    harmful_rows = np.flatnonzero(labels.label == "harmful")
    clean_rows = np.flatnonzero(labels.label == "clean")
    if not len(harmful_rows) or not len(clean_rows):
        raise SystemExit(
            f"{len(harmful_rows)} harmful and {len(clean_rows)} clean pairs: both kinds are needed"
        )
    harm[clean_rows] = 0.0
    captions = labels.text.tolist()
    prompts, null = backbone.encode_prompts(captions), backbone.null()
    by_image = (labels.evidence == "image").to_numpy(dtype=bool)
    told = harmful_rows[~by_image[harmful_rows]] if config.safe_pictures else harmful_rows[:0]
    safe_rows = np.full(len(labels), -1)
    safe_rows[told] = len(labels) + np.arange(len(told))
    if len(told):
        latents = torch.cat(
            [latents, safe_latents(config, accelerator, backbone, hgr, captions, told, resolution)]
        )
    concept_places = torch.tensor([hgr.concepts.index(name) for name in labels.concept])
    prototypes = shift(null, hgr.prototype_delta())
    spread = Conditioning(
        prompts.embeds.flatten(0, 1).std(0), None if prompts.pooled is None else prompts.pooled.std(0)
    )
    backbone.free_encoders()

    denoiser = backbone.denoiser
    add_lora(denoiser, config.rank, config.alpha, config.targets)
    params = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=config.lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.steps // 20, config.steps)
    student, optimizer = accelerator.prepare(denoiser, optimizer)
    accelerator.register_for_checkpointing(schedule)
    first = load_checkpoint(accelerator, config.output_dir / "checkpoints")
    metrics = Metrics(accelerator, config.output_dir / "metrics.jsonl", first)
    logger.info(
        "finetune: LoRA of %.2f M parameters, %d harmful, %d clean, %d dropped pairs, eta %.2f, batch %d x %d, %s, "
        "steps %d to %d, into %s",
        sum(p.numel() for p in params) / 1e6,
        len(harmful_rows),
        len(clean_rows),
        len(labels) - len(harmful_rows) - len(clean_rows),
        eta,
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
        desc="finetune",
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        rows, pictures, timesteps, seeds, emptied = draw_batch(
            config, accelerator, harmful_rows, clean_rows, safe_rows, step
        )
        x0, t, h = latents[pictures], timesteps.to(accelerator.device), harm[rows]
        noisy = backbone.add_noise(x0, seeded_noise(tuple(x0.shape[1:]), seeds).to(x0), t)
        batch = jitter(prompts.select(rows), spread, config.prompt_noise, seeds)
        batch = replace_rows(batch, emptied, null.expand(len(rows)))
        with accelerator.autocast():
            redirected = hgr.redirect(batch, null)
            by_picture = torch.from_numpy(by_image[rows.numpy()])
            redirected = replace_rows(redirected, by_picture, prototypes.select(concept_places[rows]))
            with teacher(denoiser):
                target = teacher_targets(backbone, noisy, t, batch, redirected, null, h, eta)
            predicted = backbone.predict(noisy, t, batch, denoiser=student)
        weight = signal_weight(t, backbone.alphas_cumprod, config.weight_cap)
        loss, scalars = unlearning_loss(predicted, target, h, config.clean_weight, weight)
        accelerator.backward(loss.mean())
        scalars["grad_norm"] = accelerator.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        scalars["loss"] = loss.detach().mean()
        shown = metrics.log(step, scalars)
        bar.set_postfix({name: f"{shown[name]:.4f}" for name in ("harmful_error", "clean_error")})
        if (step + 1) % config.checkpoint_every == 0:
            save_checkpoint(accelerator, config.output_dir / "checkpoints", step + 1)

    if accelerator.is_main_process:
        with replace_folder(config.output_dir / "adapter") as temporary:
            trained = accelerator.unwrap_model(student, keep_fp32_wrapper=False)
            save_adapter(trained, temporary)
            write_probe(trained, prompts.embeds[:8], tuple(latents.shape[1:]), temporary)
        write_run(
            config.output_dir,
            {**asdict(config), "eta": eta},
            accelerator,
            source.fingerprint,
            time.time() - started,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def safe_latents(
    config: FinetuneConfig,
    accelerator: Accelerator,
    backbone: Backbone,
    hgr: HGR,
    captions: Sequence[str],
    rows: np.ndarray,
    resolution: int,
) -> torch.Tensor:
    """Latents (len(rows), C, h, w) that SafeCFG draws for the captions of `rows`, kept in the run folder."""
    enable_safecfg(backbone.pipeline, hgr, fingerprint=backbone.fingerprint)
    drawn = drawn_latents(
        accelerator,
        config.output_dir / "latents",
        backbone,
        [captions[row] for row in rows],
        rows.tolist(),
        config.seed,
        resolution,
        config.picture_steps,
        config.guidance_scale,
        config.batch_size,
        shard_rows=64,
        hgr=weights_fingerprint(hgr),
    )
    disable_safecfg(backbone.pipeline)
    return drawn.to(accelerator.device)


def draw_batch(
    config: FinetuneConfig,
    accelerator: Accelerator,
    harmful_rows: np.ndarray,
    clean_rows: np.ndarray,
    safe_rows: np.ndarray,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """Rows of prompts and of pictures, timesteps, noise seeds and emptied prompts of this process.

    A function of seed and step alone. `safe_rows` holds the place of each pair's safe picture, -1 for none.
    """
    rng = np.random.default_rng([config.seed, step])
    count = config.batch_size * accelerator.num_processes
    harmful, clean = rng.choice(harmful_rows, count // 2), rng.choice(clean_rows, count // 2)
    safe = (rng.random(count // 2) < config.safe_pictures) & (safe_rows[harmful] >= 0)
    pictures = np.stack([np.where(safe, safe_rows[harmful], harmful), clean], axis=1).flatten()
    rows = np.stack([harmful, clean], axis=1).flatten()
    timesteps, seeds = rng.integers(config.min_timestep, 1000, count), rng.integers(0, 2**31, count)
    emptied = (rng.random(count) < config.empty_prompts) & (np.arange(count) % 2 == 1)
    mine = slice(
        accelerator.process_index * config.batch_size, (accelerator.process_index + 1) * config.batch_size
    )
    return (
        torch.from_numpy(rows[mine]),
        torch.from_numpy(pictures[mine]),
        torch.from_numpy(timesteps[mine]),
        [int(seed) for seed in seeds[mine]],
        torch.from_numpy(emptied[mine]),
    )


if __name__ == "__main__":
    main()
