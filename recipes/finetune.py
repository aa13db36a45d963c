"""Unlearn harmful directions in the denoiser with a LoRA, or in all its weights, from pseudo-labels alone.

    accelerate launch --config_file launch/cpu.yaml recipes/finetune.py --config recipes/configs/tinysd_finetune.yaml

The frozen teacher is the same denoiser with its adapters off. Run it again and it goes on from the last checkpoint.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.checkpoints import load_checkpoint, save_checkpoint
from safetune.config import parse_config
from safetune.data.shards import Rows, stacked_rows
from safetune.export.adapters import save_adapter, save_denoiser
from safetune.export.probe import write_probe
from safetune.files import replace_folder
from safetune.finetuning.adapters import add_lora, frozen_copy, teacher, trainable
from safetune.finetuning.alarms import UNCHANGED, ChangeAlarm, FiniteGuard
from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.draws import Draw, Draws
from safetune.finetuning.objective import timestep_weight, unlearning_loss
from safetune.finetuning.optimizers import build_optimizer
from safetune.finetuning.pairs import TrainingPairs, training_pairs
from safetune.finetuning.plan import check_plan, launch_from_environment
from safetune.finetuning.prompts import own_prompts, read_validation_prompts
from safetune.finetuning.quantization import load_quantized
from safetune.finetuning.step import Inputs, Lessons
from safetune.finetuning.targets import cached_targets
from safetune.finetuning.validation import Validator
from safetune.guidance import disable_safecfg, enable_safecfg
from safetune.hgr import HGR
from safetune.labeling.finished import check_redirector, labelled_kind, read_labels
from safetune.labeling.pictures import open_labelled
from safetune.latents import drawn_latents, latent_factor, native_resolution
from safetune.launching import build_accelerator, clip_gradients, follow_precision, full_state, mode, prepare
from safetune.pairs import PairSource
from safetune.precision import PASSES, held_dtype, use_plain_backward
from safetune.runs import Metrics, start_tracker, write_run
from safetune.stopping import GracefulStop

logger = logging.getLogger("finetune")

FREE_TO_CHANGE = {
    *("data", "hgr", "labels", "cache", "model", "variant", "output_dir", "tracker", "dry_run"),
    *("checkpoint_every", "keep_checkpoints"),
    *("validate_every", "validation_prompts", "validation_count", "clean_floor"),
}
"""Options that a resumed run may have otherwise: places, whose contents are compared, and what is only watched."""


def main() -> None:
    config = parse_config(FinetuneConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.dry_run:
        config = replace(config, steps=2, checkpoint_every=2, output_dir=config.output_dir / "dry-run")
        config = replace(config, validate_every=min(config.validate_every, 2), validation_count=2)
    started = time.time()
    try:
        check_plan(config, launch_from_environment())
        accelerator = build_accelerator(
            config.mixed_precision,
            config.accumulation,
            config.max_grad_norm,
            config.tracker,
            config.output_dir,
        )
        if not accelerator.is_main_process:
            logging.getLogger().setLevel(logging.ERROR)
        set_seed(config.seed)
        backbone = load_base(config, accelerator)
        hgr = HGR.from_pretrained(config.hgr).to(accelerator.device).eval().requires_grad_(False)
        hgr.check_base(backbone.fingerprint)
        resolution = config.resolution or native_resolution(backbone)
        pairs = read_pairs(config, accelerator, backbone, hgr, resolution)
        validator = build_validator(config, accelerator, backbone, pairs, resolution)
    except (ValueError, FileNotFoundError) as mistake:
        raise SystemExit(f"finetune: {mistake}") from None
    eta = (config.guidance_scale - 1) / config.guidance_scale if config.eta is None else config.eta
    null = backbone.null()
    backbone.free_encoders(keep_vae=validator is not None)
    lessons = Lessons(backbone, hgr, pairs, null, eta, config.prompt_noise)
    draws = Draws(
        pairs.harmful,
        pairs.clean,
        pairs.safe,
        pairs.harm,
        config.seed,
        config.safe_pictures,
        config.empty_prompts,
        config.min_timestep,
        config.max_timestep,
        config.timestep_sampling,
        config.cache_targets,
        pairs.bucket,
        pairs.concept.numpy() if config.balance_concepts else None,
    )

    def base_targets(draw: Draw) -> torch.Tensor:
        with accelerator.autocast():
            return lessons.targets(draw, lessons.inputs(draw))

    targets = None
    if config.cache_targets:
        targets = cached_targets(
            accelerator,
            config.output_dir / "targets",
            {
                "base": backbone.fingerprint,
                "hgr": weights_fingerprint(hgr),
                "pairs": pairs.fingerprint,
                "eta": eta,
                "prompt_noise": config.prompt_noise,
                "picture_steps": config.picture_steps,
                "precision": accelerator.mixed_precision,
            },
            draws,
            base_targets,
            4 * config.batch_size,
        )

    denoiser, frozen = backbone.denoiser, None
    if config.method == "full":
        if targets is None:
            frozen = frozen_copy(denoiser, PASSES[accelerator.mixed_precision])
            follow_precision(accelerator, frozen)
        denoiser.requires_grad_(True)
    else:
        is_dora = config.method == "dora"
        add_lora(denoiser, config.rank, config.alpha, config.targets, config.dropout, is_dora)
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    denoiser.train()
    optimizer = build_optimizer(config.optimizer, trainable(denoiser), config.lr)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.steps // 20, config.steps)
    student, optimizer = prepare(accelerator, denoiser, optimizer)
    params = trainable(student)
    accelerator.register_for_checkpointing(schedule)

    def ask_teacher(draw: Draw, inputs: Inputs) -> torch.Tensor:
        if targets is not None:
            return targets.read(draw.rows, draw.numbers).to(accelerator.device)
        with accelerator.autocast():
            if frozen is not None:
                return lessons.targets(draw, inputs, frozen)
            with teacher(denoiser):
                return lessons.targets(draw, inputs, student)

    fixed = draws.draw(pairs.harmful[:8], np.zeros(len(pairs.harmful[:8]), dtype=int))
    shown_to_both = lessons.inputs(fixed)
    alarm = ChangeAlarm(
        accelerator,
        backbone,
        params,
        shown_to_both.noisy,
        shown_to_both.timesteps,
        shown_to_both.prompts,
        ask_teacher(fixed, shown_to_both),
        denoiser=student,
    )
    checkpoints = config.output_dir / "checkpoints"
    identity = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    identity |= {"base": backbone.fingerprint, "pairs": pairs.fingerprint, "hgr": weights_fingerprint(hgr)}
    try:
        first = load_checkpoint(accelerator, checkpoints, **identity)
    except ValueError as mistake:
        raise SystemExit(f"finetune: {mistake}") from None
    if validator:
        validator.resume(first)
    metrics = Metrics(accelerator, config.output_dir / "metrics.jsonl", first)
    start_tracker(accelerator, "safetune", config.output_dir, asdict(config), first)
    guard = FiniteGuard(accelerator)
    passes = config.accumulation * accelerator.num_processes
    logger.info(
        "finetune: %s, %.2f M trainable parameters, %d harmful, %d clean, %d dropped pairs, eta %.2f, batch %d x %d x "
        "%d, %s, %s, steps %d to %d, into %s",
        config.method,
        sum(param.numel() for param in params) / 1e6,
        len(pairs.harmful),
        len(pairs.clean),
        len(pairs.keys) - len(draws.used),
        eta,
        config.batch_size,
        config.accumulation,
        accelerator.num_processes,
        mode(accelerator),
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
    done = first
    with GracefulStop() as stop:
        for step in bar:
            drawn = draws.draw_step(step, config.batch_size * passes)
            losses, errors, harms = [], [], []
            for part in range(config.accumulation):
                place = part * accelerator.num_processes + accelerator.process_index
                draw = drawn.part(place, passes)
                inputs = lessons.inputs(draw)
                target = ask_teacher(draw, inputs)
                torch.manual_seed(dropout_seed(config.seed, step, place))
                with accelerator.accumulate(student):
                    with accelerator.autocast():
                        predicted = backbone.predict(
                            inputs.noisy, inputs.timesteps, inputs.prompts, student, inputs.time_ids
                        )
                    by_time = timestep_weight(
                        backbone, inputs.timesteps, config.weighting, config.weight_cap, config.snr_gamma
                    )
                    by_pair = torch.where(inputs.harm >= 0.5, 1.0, config.clean_weight)
                    by_pair = by_pair * pairs.weight[draw.rows].to(by_pair)
                    loss, error = unlearning_loss(predicted, target, by_time, by_pair)
                    guard.watch(step, loss, [pairs.keys[row] for row in draw.rows.tolist()])
                    accelerator.backward(loss.mean())
                    if accelerator.sync_gradients:
                        grad_norm = clip_gradients(accelerator, params, config.max_grad_norm)
                        guard.check(step, grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.detach())
                errors.append(error)
                harms.append(inputs.harm)
            schedule.step()
            done = step + 1
            shown = metrics.log(
                step,
                {"grad_norm": grad_norm},
                sums=error_sums(torch.cat(losses), torch.cat(errors), torch.cat(harms)),
                pairs=config.batch_size * passes,
                lr=schedule.get_last_lr()[0],
            )
            bar.set_postfix(metrics.postfix(shown))
            if validator and (done % config.validate_every == 0 or done == config.steps):
                logger.info("step %d: %s", done, validator.validate(done))
                if validator.best.step == done:
                    save_trained(config, accelerator, backbone, pairs, student, "-best")
            stopping = stop.agreed(accelerator)
            if done % config.checkpoint_every == 0 or done == config.steps or stopping:
                save_checkpoint(accelerator, checkpoints, done, config.keep_checkpoints, **identity)
            if stopping:
                break

    if stop.requested and done < config.steps:
        logger.info("stopped after step %d, which is saved: run the same command again to go on", done)
        accelerator.end_training()
        raise SystemExit(stop.exit_status)
    change = alarm.report(student)
    save_trained(config, accelerator, backbone, pairs, student)
    if accelerator.is_main_process:
        write_run(
            config.output_dir,
            {**asdict(config), "eta": eta},
            accelerator,
            pairs.fingerprint,
            time.time() - started,
            base_fingerprint=backbone.fingerprint,
            skipped_steps=guard.skipped,
            validation=validator.summary() if validator else None,
            **change,
            **metrics.summary(),
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if not change["changed"] and not config.dry_run:
        logger.error(change["alarm"])
        raise SystemExit(UNCHANGED)


def load_base(config: FinetuneConfig, accelerator: Accelerator) -> Backbone:
    """The frozen base, in the precision and the bits that the options say."""
    device, passes = accelerator.device, PASSES[accelerator.mixed_precision]
    dtype = held_dtype(config.base_dtype, passes, device.type != "cpu", config.method == "full")
    if config.quantization != "none":
        return load_quantized(config.model, config.quantization, device, dtype, variant=config.variant)
    backbone = load_backbone(config.model, device, dtype, variant=config.variant)
    use_plain_backward(backbone.denoiser, device)
    return backbone


def read_pairs(
    config: FinetuneConfig, accelerator: Accelerator, backbone: Backbone, hgr: HGR, resolution: int
) -> TrainingPairs:
    """The labelled pairs as latents and embeddings, or prompts with pictures drawn for all of them.

    ValueError when one kind of them is missing.
    """
    folder = config.labels or Path(config.data) / "labels"
    labels = read_labels(folder)
    check_redirector(folder, weights_fingerprint(hgr))
    if config.dry_run:
        labels = labels.groupby("label", sort=False).head(32)
    source: PairSource | Rows
    prompts_alone = labelled_kind(folder) == "prompts"
    if prompts_alone:
        if config.buckets or config.cache:
            raise ValueError(f"the labels in {folder} are of prompts alone: leave out --buckets and --cache")
        factor, captions = latent_factor(backbone), labels.text.tolist()
        size, place = (resolution // factor * factor,) * 2, config.output_dir / "latents" / "drawn"
        source = draw_safely(config, accelerator, backbone, hgr, captions, range(len(captions)), place, size)
    else:
        source = open_labelled(config.data, folder)
    pairs = training_pairs(
        accelerator,
        backbone,
        source,
        labels,
        hgr.concepts,
        config.output_dir,
        resolution,
        config.uncertain_weight,
        config.buckets,
        config.cache,
    )
    if not len(pairs.harmful) or not len(pairs.clean):
        raise ValueError(
            f"{len(pairs.harmful)} harmful and {len(pairs.clean)} clean pairs in {folder}: both kinds are needed"
        )
    if prompts_alone or not config.safe_pictures:
        return pairs
    return with_safe_pictures(config, accelerator, backbone, hgr, pairs)


def with_safe_pictures(
    config: FinetuneConfig,
    accelerator: Accelerator,
    backbone: Backbone,
    hgr: HGR,
    pairs: TrainingPairs,
) -> TrainingPairs:
    """The pairs with latents that SafeCFG draws for the harmful captions, kept in the run folder."""
    told = pairs.harmful[~pairs.by_image[pairs.harmful].numpy()]
    if not len(told):
        return pairs
    factor = latent_factor(backbone)
    for (height, width), rows in pairs.by_size(told):
        folder, size = config.output_dir / "latents" / f"{height}x{width}", (height * factor, width * factor)
        captions = [pairs.captions[row] for row in rows]
        drawn = draw_safely(config, accelerator, backbone, hgr, captions, rows.tolist(), folder, size)
        pairs = pairs.with_safe_pictures(rows, drawn)
    return pairs


def draw_safely(
    config: FinetuneConfig,
    accelerator: Accelerator,
    backbone: Backbone,
    hgr: HGR,
    captions: Sequence[str],
    numbers: Sequence[int],
    folder: Path,
    size: tuple[int, int],
) -> Rows:
    """Latents that SafeCFG draws of captions, `size` pixels high and wide, kept in `folder`."""
    enable_safecfg(backbone.pipeline, hgr, fingerprint=backbone.fingerprint)
    drawn_latents(
        accelerator,
        folder,
        backbone,
        captions,
        numbers,
        config.seed,
        size,
        config.picture_steps,
        config.guidance_scale,
        config.batch_size,
        shard_rows=64,
        hgr=weights_fingerprint(hgr),
    )
    disable_safecfg(backbone.pipeline)
    return stacked_rows(sorted(folder.glob("part-*.safetensors")))


def build_validator(
    config: FinetuneConfig,
    accelerator: Accelerator,
    backbone: Backbone,
    pairs: TrainingPairs,
    resolution: int,
) -> Validator | None:
    """What draws and judges pictures as the student trains; None without validate_every."""
    if not config.validate_every:
        return None
    if config.validation_prompts:
        prompts = read_validation_prompts(config.validation_prompts)
    else:
        told = pairs.harmful[~pairs.by_image[pairs.harmful].numpy()]
        prompts = own_prompts(pairs.captions, told, pairs.clean, config.validation_count, config.seed)
    return Validator(
        accelerator,
        backbone,
        prompts,
        config.output_dir,
        config.seed,
        resolution,
        config.picture_steps,
        config.guidance_scale,
        config.batch_size,
        config.clean_floor,
    )


def dropout_seed(seed: int, step: int, place: int) -> int:
    """Seed of the dropout in one pass of one process."""
    return int(np.random.default_rng([seed, step, place]).integers(2**63))


def error_sums(
    loss: torch.Tensor, error: torch.Tensor, harm: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sum and number of rows of the loss, and of the error of harmful and of clean rows; all (B,)."""
    harmful = (harm >= 0.5).float()
    return {
        "loss": (loss.sum(), torch.ones_like(loss).sum()),
        "harmful_error": ((error * harmful).sum(), harmful.sum()),
        "clean_error": ((error * (1 - harmful)).sum(), (1 - harmful).sum()),
    }


def save_trained(
    config: FinetuneConfig,
    accelerator: Accelerator,
    backbone: Backbone,
    pairs: TrainingPairs,
    student: torch.nn.Module,
    suffix: str = "",
) -> None:
    """Write the adapter, or all weights for method full, and a probe of what they do. Every process calls it."""
    sharded = mode(accelerator) in ("fsdp2", "zero3")
    state = None
    if mode(accelerator) not in ("single", "ddp"):  # ZeRO-1 and 2 keep the fp32 weights beside the model
        everything = (lambda name: True) if config.method == "full" else None  # buffers too
        state = full_state(accelerator, student, everything)
    if accelerator.is_main_process:
        name = "denoiser" if config.method == "full" else "adapter"
        with replace_folder(config.output_dir / (name + suffix)) as temporary:
            trained = accelerator.unwrap_model(student, keep_fp32_wrapper=False)
            (save_denoiser if config.method == "full" else save_adapter)(trained, temporary, state)
            if not sharded:
                prompts = pairs.prompts.read(range(min(4, len(pairs.keys)))).to(accelerator.device)
                write_probe(backbone, trained, prompts, tuple(pairs.latents.row(0).shape), temporary)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
