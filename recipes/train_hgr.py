"""Train the Harmful Guidance Redirector (HGR) of a model on prompts, harmful and clean.

    accelerate launch --config_file launch/cpu.yaml recipes/train_hgr.py --config recipes/configs/tinysd_hgr.yaml

The prompts come from one of three places. `data` is a pair set: pictures with the columns `text` and optionally
`safe_prompt` (equal to `text` for a clean prompt), `category` and `concept`. `bank` is a concept bank and
`prompts` a prompt file: for these the base model draws the pictures itself, as latents that are never decoded.
Run it again and it goes on from the last checkpoint.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint
from safetune.concepts import bank_prompts, load_bank
from safetune.conditioning import Conditioning, shift, squared_norm
from safetune.config import parse_config
from safetune.diffusion import seeded_noise, signal_weight
from safetune.files import replace_folder
from safetune.hgr import HGR
from safetune.hgr.model import SIZES
from safetune.hgr.objective import redirection_loss
from safetune.hgr.rows import (
    TrainingRow,
    encode_rows,
    hold_out,
    picture_prompts,
    rows_fingerprint,
    rows_of_dataset,
    rows_of_pairs,
    rows_of_table,
    training_rows,
)
from safetune.hgr.training import set_prototypes, teacher_targets, unfound_concepts, warm_start
from safetune.hgr.validation import (
    Convergence,
    alarm_of,
    prepare_held_out,
    summarise,
    validation_draws,
    validation_sums,
)
from safetune.latents import cached_latents, drawn_latents, latent_factor, native_resolution
from safetune.launching import check_world_size
from safetune.pairs import image_tensor, load_pairs
from safetune.precision import PASSES, resolve_precision, use_plain_backward
from safetune.prompts import read_prompts
from safetune.runs import Metrics, write_run

logger = logging.getLogger("train_hgr")


@dataclass(frozen=True)
class HGRConfig:
    data: str | None = None
    """Pair set: image folder with metadata.jsonl, folder of parquet files, or hub name."""
    bank: str | None = None
    """Concept bank in place of data: a bundled one by name (i2p, styles), or the path of a .yaml file."""
    prompts: Path | None = None
    """Prompt file in place of data: .csv, .jsonl or .parquet."""
    layout: Literal["plain", "i2p", "coprov2"] = "plain"
    """Layout of the prompt file."""
    count: int = 2000
    """Prompts made from the bank; half of them are clean."""
    target: Literal["auto", "rewriting", "concept"] = "auto"
    """Form of the harmful target: from the prompt's safe rewriting, or from its concept's (or category's) name
    alone; auto takes the rewriting where there is one."""
    model: str = "tinysd"
    """Base model: "tinysd", a folder in diffusers layout, or a hub name."""
    base_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the frozen base's weights; auto holds the denoiser in that of the passes, the rest in float32.
    A large base needs half the memory in 16 bits."""
    gradient_checkpointing: bool = False
    """Compute the denoiser's activations again on the way back: less memory, a third more time."""
    output_dir: Path = Path("runs/hgr")
    """Run folder; the redirector is written to output_dir/hgr."""
    resolution: int | None = None
    """Pixels a side of the pictures, given (scaled and cut) or drawn; the model's own by default."""
    picture_steps: int = 25
    """Denoising steps of pictures that the base model draws; guidance_scale is their guidance."""
    picture_batch: int = 8
    """Pictures drawn in one call of the base model."""
    size: Literal["tiny", "small", "base", "large"] = "base"
    """Size of the redirector; docs/method.md has the numbers of parameters."""
    warm_steps: int = 300
    """Steps without the denoiser that first fit delta to c - s(c), or to h - null in the concept form."""
    steps: int = 900
    """Optimizer steps."""
    batch_size: int = 16
    """Prompts per forward pass and process."""
    clean_share: float = 0.5
    """Share of clean prompts among them; harmful ones have three passes of the teacher, clean ones one."""
    teacher_reuse: int = 1
    """Optimizer steps in a row that one batch of the teacher's targets serves. The redirector sees no noise, so
    that it cannot learn a batch by heart; 2 saves half of the teacher's passes."""
    gradient_accumulation: int = 1
    """Forward passes per optimizer step: k of them are one batch of k * batch_size."""
    lr: float = 1.2e-3
    """Peak learning rate, warmed up over 5% of the steps and decayed by a cosine."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated and saved; 0 is none."""
    guidance_scale: float = 5.0
    """Guidance scale w (more than 1) that the target is exact for."""
    strength: float = 1.5
    """Factor on the redirection of harmful prompts; 1 reproduces the safe rewriting."""
    clean_weight: float = 4.0
    """Weight of the error on clean prompts."""
    delta_weight: float = 0.0005
    """Weight of the squared norm of delta on clean prompts."""
    along_weight: float = 0.0
    """Extra weight of the part of a harmful prompt's error that lies along its redirection."""
    clean_ramp: float = 0.4
    """Share of the steps over which both clean weights rise from zero; from the start they would hold delta at
    zero for harmful concepts that are not found yet."""
    min_timestep: int = 150
    """Smallest timestep that is drawn: below it there is next to no content left to decide."""
    weight_cap: float = 50.0
    """Largest loss weight of a timestep; weights are 1 / a_t, so that noisy timesteps count too."""
    validation_share: float = 0.05
    """Share of the prompts of each kind that is held out for validation: 1 to 32 rows."""
    validate_every: int = 100
    """Steps between validations."""
    patience: int = 3
    """Validations after the clean ramp without a better loss (by 1%) that end the run; 0 never does."""
    seed: int = 0
    """Seed of weights, order, timesteps and noise."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Precision of the passes; auto takes what the hardware is fast in."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        sources = {"data": self.data, "bank": self.bank, "prompts": self.prompts}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"got {' and '.join(given) or 'none'} of data, bank and prompts: give exactly one, as --data "
                "FOLDER, --bank i2p or --prompts FILE.csv; --data null takes back what a config file says"
            )
        if self.guidance_scale <= 1:
            raise ValueError(
                f"guidance_scale {self.guidance_scale}: give more than 1, there is no guidance below"
            )
        if self.batch_size < 2:
            raise ValueError(f"batch_size {self.batch_size}: give 2 or more, harmful prompts and clean ones")
        if not 0 < self.clean_share < 1:
            raise ValueError(f"clean_share {self.clean_share}: give more than 0 and less than 1, such as 0.5")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay}: give 0 for none, or less than 1, such as 0.99")
        if not 0 < self.validation_share <= 0.5:
            raise ValueError(f"validation_share {self.validation_share}: give more than 0, at most 0.5")
        for name in (
            "steps",
            "teacher_reuse",
            "gradient_accumulation",
            "validate_every",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give 1 or more")
        if self.patience < 0:
            raise ValueError(
                f"patience {self.patience}: give 0 for no early end, or the number of validations"
            )


def main() -> None:
    config = parse_config(HGRConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        rows, dataset = read_rows(config)
        harmful_rows, clean_rows, held_rows = hold_out(rows, config.validation_share, config.seed)
    except (ValueError, FileNotFoundError) as mistake:
        raise SystemExit(f"train_hgr: {mistake}") from None
    accelerator = Accelerator(
        mixed_precision=resolve_precision(config.mixed_precision),
        gradient_accumulation_steps=config.gradient_accumulation,
    )
    check_world_size(accelerator)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    started = time.time()
    device = accelerator.device

    whole = torch.float32 if config.base_dtype == "auto" else getattr(torch, config.base_dtype)
    backbone = load_backbone(config.model, device, whole)
    use_plain_backward(backbone.denoiser, device)
    try:
        latents = picture_latents(config, accelerator, backbone, rows, dataset)
    except ValueError as mistake:
        raise SystemExit(f"train_hgr: {mistake}") from None
    encoded = encode_rows(backbone, rows)
    null = encoded.null(device)
    backbone.free_encoders()
    if config.base_dtype == "auto":  # else autocast makes the same 16-bit weights anew in every pass
        backbone.denoiser.to(PASSES[accelerator.mixed_precision])
    if config.gradient_checkpointing:
        backbone.denoiser.enable_gradient_checkpointing()
    timesteps, seeds = validation_draws(encoded.harmful[held_rows], config.min_timestep, config.seed)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    with accelerator.autocast():
        held = prepare_held_out(
            backbone,
            encoded,
            torch.from_numpy(held_rows[mine]),
            latents[held_rows[mine]],
            timesteps[mine],
            seeds[mine],
            config.guidance_scale,
            config.strength,
            config.weight_cap,
            config.batch_size,
        )

    set_seed(config.seed)
    category_of = {row.concept: row.category for row in rows if row.harmful}
    concepts = sorted(category_of)
    width, layers, heads = SIZES[config.size]
    hgr = HGR(
        text_width=null.embeds.shape[2],
        max_tokens=null.embeds.shape[1],
        width=width,
        layers=layers,
        heads=heads,
        pooled_width=0 if null.pooled is None else null.pooled.shape[1],
        base_fingerprint=backbone.fingerprint,
        concepts=concepts,
        categories=[category_of[name] for name in concepts],
        target_scale=config.strength * config.guidance_scale / (config.guidance_scale - 1),
    ).to(device)
    checkpoints = config.output_dir / "checkpoints"
    if not last_checkpoint(checkpoints)[0]:
        left = warm_start(hgr, encoded, harmful_rows, clean_rows, config.warm_steps, seed=config.seed)
        logger.info("warm start: %d steps, %.0f%% of c - s(c) is left", config.warm_steps, 100 * left)
    optimizer = torch.optim.AdamW(hgr.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.steps // 20, config.steps)
    ema = EMAModel(hgr.parameters(), decay=config.ema_decay) if config.ema_decay else None
    hgr, optimizer = accelerator.prepare(hgr, optimizer)
    params = [p for p in hgr.parameters() if p.requires_grad]
    convergence = Convergence()
    accelerator.register_for_checkpointing(schedule, convergence, *([ema] if ema else []))
    first = load_checkpoint(accelerator, checkpoints)
    accelerator.step = 0  # counts passes; a checkpoint may be of another gradient_accumulation
    if ema:
        ema.to(device)
    metrics = Metrics(accelerator, config.output_dir / "metrics.jsonl", first)
    validations = Metrics(accelerator, config.output_dir / "validation.jsonl", first)
    logger.info(
        "HGR: %.2f M parameters, %d harmful and %d clean prompts, %d held out, %d concepts, batch %d x %d x %d, %s, "
        "steps %d to %d, into %s",
        sum(p.numel() for p in params) / 1e6,
        len(harmful_rows),
        len(clean_rows),
        len(held_rows),
        len(concepts),
        config.batch_size,
        config.gradient_accumulation,
        accelerator.num_processes,
        accelerator.mixed_precision,
        first,
        config.steps,
        config.output_dir,
    )

    if convergence.stopped and config.patience:
        logger.info("nothing left to train: %s; give --patience 0 to go on", convergence.stopped)
        last = first
    else:
        convergence.stopped, last = "", config.steps
    bar = tqdm(
        range(first, last),
        initial=first,
        total=config.steps,
        desc="train-hgr",
        disable=not accelerator.is_main_process,
    )
    done = first
    targets: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    for step in bar:
        passes = []
        ramp = min(1.0, step / max(1.0, config.clean_ramp * config.steps))
        for part in range(config.gradient_accumulation):
            drawn, timesteps, seeds = draw_batch(
                config, accelerator, harmful_rows, clean_rows, step // config.teacher_reuse, part
            )
            x0, t = latents[drawn].to(device), timesteps.to(device)
            noisy = backbone.add_noise(x0, seeded_noise(tuple(x0.shape[1:]), seeds).to(x0), t)
            batch, positives, negatives, harmful = encoded.batch(drawn, device)
            with accelerator.accumulate(hgr):
                with accelerator.autocast():
                    if (step // config.teacher_reuse, part) not in targets:
                        lesson = teacher_targets(
                            backbone,
                            noisy,
                            t,
                            positives,
                            negatives,
                            null,
                            harmful,
                            config.guidance_scale,
                            config.strength,
                        )
                        if part == 0:
                            targets.clear()
                        targets[step // config.teacher_reuse, part] = lesson
                    target, eps_null = targets[step // config.teacher_reuse, part]
                    delta = Conditioning(*hgr(batch.embeds))
                    predicted = backbone.predict(noisy, t, shift(null, delta))
                loss, scalars = redirection_loss(
                    predicted,
                    target,
                    eps_null,
                    squared_norm(delta),
                    harmful,
                    config.clean_weight * ramp,
                    config.delta_weight * ramp,
                    config.along_weight,
                    signal_weight(t, backbone.alphas_cumprod, config.weight_cap),
                )
                accelerator.backward(loss.mean())
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(params, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            passes.append({**scalars, "loss": loss.detach().mean()})
        schedule.step()
        if ema:
            ema.step(params)
        scalars = {name: torch.stack([each[name] for each in passes]).mean() for name in passes[0]}
        shown = metrics.log(step, {**scalars, "grad_norm": grad_norm})
        bar.set_postfix({name: f"{shown[name]:.4f}" for name in ("harmful_error", "clean_error")})

        done = step + 1
        if done % config.validate_every == 0 or done == config.steps:
            with averaged(ema, params), accelerator.autocast():
                sums = validation_sums(accelerator.unwrap_model(hgr), backbone, held, null)
            values = validations.log(
                step, summarise(accelerator.reduce(sums, reduction="sum"), config.clean_weight)
            )
            if config.warm_steps or done >= config.steps / 4:
                convergence.alarm = alarm_of(values["hed_harmful"], values["target_length"], done)
            if convergence.alarm:
                logger.warning(convergence.alarm)
            if ramp == 1.0 and convergence.update(values["loss"], config.patience):
                convergence.stopped = (
                    f"converged at step {done}: {config.patience} validations without 1% less loss"
                )
                logger.info(convergence.stopped)
        if done % config.checkpoint_every == 0 or done == config.steps or convergence.stopped:
            save_checkpoint(accelerator, checkpoints, done)
        if convergence.stopped:
            break

    if ema:
        ema.copy_to(params)
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(hgr).float()
        set_prototypes(trained, encoded, [row.concept for row in rows])
        if unfound := unfound_concepts(trained):
            logger.warning(
                "not found, so neither guided nor labelled: %s. Give more pairs of them, or train longer",
                ", ".join(unfound),
            )
        is_hub_name = config.model != "tinysd" and not Path(config.model).exists()
        with replace_folder(config.output_dir / "hgr") as temporary:
            card = {"base_model": config.model} if is_hub_name else {}
            trained.save_pretrained(temporary, model_card_kwargs=card)
        fingerprint = rows_fingerprint(rows) if dataset is None else dataset._fingerprint
        write_run(
            config.output_dir,
            asdict(config),
            accelerator,
            fingerprint,
            time.time() - started,
            steps_done=done,
            stopped=convergence.stopped or "all steps done",
            alarm=convergence.alarm or None,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def read_rows(config: HGRConfig) -> tuple[list[TrainingRow], Dataset | None]:
    """The rows that train, and where their pictures are given the pair set that holds one for each."""
    if config.data is not None:
        dataset = load_pairs(config.data)
        rows = training_rows(rows_of_dataset(dataset), config.target)
        if len(rows) < len(dataset):
            dataset = dataset.select([row.number - 1 for row in rows])
        return rows, dataset
    if config.bank is not None:
        found = rows_of_pairs(bank_prompts(load_bank(config.bank), config.count, config.seed))
    else:
        found = rows_of_table(read_prompts(str(config.prompts), config.layout))
    return training_rows(found, config.target), None


def picture_latents(
    config: HGRConfig,
    accelerator: Accelerator,
    backbone: Backbone,
    rows: list[TrainingRow],
    dataset: Dataset | None,
) -> torch.Tensor:
    """A latent for each row: of its given picture, or of one that the base model draws of its prompt."""
    folder = config.output_dir / "latents"
    resolution = config.resolution or native_resolution(backbone)
    if resolution % latent_factor(backbone):
        raise ValueError(f"resolution {resolution}: give a multiple of {latent_factor(backbone)}")
    if dataset is not None:
        key: dict[str, object] = {
            "base": backbone.fingerprint,
            "resolution": resolution,
            "data": dataset._fingerprint,
            "vae": weights_fingerprint(backbone.pipeline.vae),
        }
        return cached_latents(
            accelerator,
            folder,
            key,
            len(rows),
            lambda part: backbone.encode_images(image_tensor(dataset.select(part), resolution)),
        )
    return drawn_latents(
        accelerator,
        folder,
        backbone,
        picture_prompts(rows),
        range(len(rows)),
        config.seed,
        resolution,
        config.picture_steps,
        config.guidance_scale,
        config.picture_batch,
        shard_rows=32,
    )


def draw_batch(
    config: HGRConfig,
    accelerator: Accelerator,
    harmful_rows: np.ndarray,
    clean_rows: np.ndarray,
    step: int,
    part: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Rows, timesteps and noise seeds of this process in one pass of a step: a function of seed and step alone.

    The step's whole batch is drawn by every process, and each of its passes takes a slice.
    """
    rng = np.random.default_rng([config.seed, step])
    count = config.batch_size * config.gradient_accumulation * accelerator.num_processes
    whole = np.floor(np.arange(count + 1) * config.clean_share + 1e-9)
    is_clean = np.diff(whole) > 0  # spread evenly, so that every process has both kinds
    rows = np.where(is_clean, rng.choice(clean_rows, count), rng.choice(harmful_rows, count))
    timesteps, seeds = rng.integers(config.min_timestep, 1000, count), rng.integers(0, 2**31, count)
    place = accelerator.process_index * config.gradient_accumulation + part
    mine = slice(place * config.batch_size, (place + 1) * config.batch_size)
    return (
        torch.from_numpy(rows[mine]),
        torch.from_numpy(timesteps[mine]),
        [int(seed) for seed in seeds[mine]],
    )


@contextmanager
def averaged(ema: EMAModel | None, params: list[torch.nn.Parameter]) -> Iterator[None]:
    """The averaged weights in place of the trained ones, where there is an average."""
    if ema is None:
        yield
        return
    ema.store(params)
    ema.copy_to(params)
    try:
        yield
    finally:
        ema.restore(params)


if __name__ == "__main__":
    main()
