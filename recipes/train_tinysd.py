"""Train TinySD from nothing: its autoencoder, then its UNet and text encoder together.

    accelerate launch --config_file launch/cpu.yaml recipes/train_tinysd.py --config recipes/configs/tinysd_base.yaml

Resumable: run it again and it goes on from the last checkpoint of the stage it was in.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel, compute_snr
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm.auto import tqdm

from safetune.checkpoints import load_checkpoint, save_checkpoint
from safetune.config import parse_config
from safetune.files import replace_folder, write_json
from safetune.precision import resolve_precision
from safetune.tinysd import architecture
from safetune.tinysd.judge import images_to_tensor
from safetune.tinysd.world import Scene, recaption, render, sample_scene

logger = logging.getLogger("train_tinysd")


@dataclass(frozen=True)
class TinySDConfig:
    output_dir: Path = Path("runs/tinysd")
    """Folder of checkpoints and, at the end, of the pipeline (output_dir/pipeline)."""
    seed: int = 0
    """Seed of scenes, captions, noise and initial weights."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Precision of the passes; auto takes what the hardware is fast in."""
    vae_steps: int = 2500
    """Optimizer steps of the autoencoder."""
    vae_batch_size: int = 16
    """Pictures per step of the autoencoder."""
    vae_lr: float = 1e-3
    """Peak learning rate of the autoencoder."""
    kl_weight: float = 1e-4
    """Weight of the mean KL term per latent value against the L1 reconstruction error."""
    scenes: int = 30_000
    """Scenes rendered and encoded once; captions are drawn anew at each visit."""
    steps: int = 7000
    """Optimizer steps of UNet and text encoder."""
    batch_size: int = 32
    """Latents per step and process."""
    lr: float = 1e-3
    """Peak learning rate of UNet and text encoder, warmed up and decayed by a cosine."""
    empty_prompts: float = 0.1
    """Share of captions replaced by the empty prompt."""
    min_snr: float = 5.0
    """Min-SNR gamma of the loss weight (arXiv 2303.09556)."""
    ema_decay: float = 0.998
    """Decay of the exponential moving average that is shipped."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""


def main() -> None:
    config = parse_config(TinySDConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_seed(config.seed)
    # One Accelerator a stage, so that a checkpoint holds the objects of its own stage only.
    vae = train_autoencoder(config, Accelerator(mixed_precision=resolve_precision(config.mixed_precision)))
    accelerator = Accelerator(mixed_precision=resolve_precision(config.mixed_precision))
    latents = cache_latents(config, accelerator, vae)
    train_denoiser(config, accelerator, vae, latents)


def scene_of(config: TinySDConfig, index: int) -> Scene:
    """Scene number `index` of the training set; half of them are harmful."""
    rng = np.random.default_rng([config.seed, index])
    return sample_scene(rng, harmful=index % 2 == 0)


def train_autoencoder(config: TinySDConfig, accelerator: Accelerator) -> AutoencoderKL:
    folder = config.output_dir / "vae"
    if (folder / "config.json").is_file():
        return AutoencoderKL.from_pretrained(folder).to(accelerator.device)
    vae = architecture.build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_lr, weight_decay=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, config.vae_steps)
    vae, optimizer = accelerator.prepare(vae, optimizer)
    accelerator.register_for_checkpointing(schedule)
    checkpoints = config.output_dir / "checkpoints" / "vae"
    first = load_checkpoint(accelerator, checkpoints)
    bar = tqdm(range(first, config.vae_steps), initial=first, total=config.vae_steps, desc="autoencoder")
    for step in bar:
        rng = np.random.default_rng([config.seed, 1, step, accelerator.process_index])
        scenes = [sample_scene(rng, harmful=i % 2 == 0) for i in range(config.vae_batch_size)]
        images = images_to_tensor([render(scene) for scene in scenes]).to(accelerator.device)
        generator = torch.Generator().manual_seed(step)
        with accelerator.autocast():
            posterior = accelerator.unwrap_model(vae).encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(accelerator.device)
            decoded = accelerator.unwrap_model(vae).decode(posterior.mean + posterior.std * noise).sample
        decoded = decoded.float()
        edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (2, 3))
        l1, kl = F.l1_loss(decoded, images), posterior.kl().mean() / posterior.mean[0].numel()
        accelerator.backward(l1 + edges + config.kl_weight * kl)
        accelerator.clip_grad_norm_(list(vae.parameters()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            bar.set_postfix(l1=f"{l1.item():.4f}", kl=f"{kl.item():.2f}")
        if (step + 1) % config.checkpoint_every == 0:
            save_checkpoint(accelerator, checkpoints, step + 1)
    vae = accelerator.unwrap_model(vae).eval()
    with torch.inference_mode():
        images = images_to_tensor([render(scene_of(config, i)) for i in range(512)]).to(accelerator.device)
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(64)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    with replace_folder(folder) as temporary:
        vae.save_pretrained(temporary)
    return vae


def cache_latents(config: TinySDConfig, accelerator: Accelerator, vae: AutoencoderKL) -> torch.Tensor:
    """Scaled latents (scenes, 4, 16, 16) of the training set, kept in half precision on disk."""
    path = config.output_dir / "latents.safetensors"
    if not path.is_file():
        chunks = []
        vae.eval()
        for start in tqdm(range(0, config.scenes, 64), desc="latents"):
            indices = range(start, min(start + 64, config.scenes))
            images = images_to_tensor([render(scene_of(config, i)) for i in indices]).to(accelerator.device)
            with torch.inference_mode(), accelerator.autocast():
                chunks.append(
                    (vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor).half().cpu()
                )
        save_file({"latents": torch.cat(chunks).contiguous()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return load_file(path)["latents"].float()


class Denoiser(torch.nn.Module):
    """UNet and text encoder as one module, so that one optimizer, one EMA and one checkpoint hold both."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.unet = architecture.build_unet()
        self.text_encoder = architecture.build_text_encoder(vocab_size)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(tokens).last_hidden_state).sample


def train_denoiser(
    config: TinySDConfig, accelerator: Accelerator, vae: AutoencoderKL, latents: torch.Tensor
) -> None:
    tokenizer = architecture.build_tokenizer(config.output_dir / "tokenizer")
    scheduler = architecture.build_scheduler()
    model = Denoiser(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-2)
    schedule = get_cosine_schedule_with_warmup(optimizer, 200, config.steps)
    ema = EMAModel(model.parameters(), decay=config.ema_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(schedule, ema)
    checkpoints = config.output_dir / "checkpoints" / "denoiser"
    first = load_checkpoint(accelerator, checkpoints)
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc="denoiser",
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        rng = np.random.default_rng([config.seed, 2, step, accelerator.process_index])
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        indices = rng.integers(config.scenes, size=config.batch_size)
        captions = [training_caption(config, int(i), rng) for i in indices]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        clean = latents[torch.from_numpy(indices)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        noisy, timesteps, tokens, noise = (
            x.to(accelerator.device) for x in (noisy, timesteps, tokens, noise)
        )
        with accelerator.autocast():
            predicted = model(noisy, timesteps, tokens)
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=config.min_snr) / snr
        loss = (weight * (predicted.float() - noise).pow(2).mean((1, 2, 3))).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % config.checkpoint_every == 0:
            save_checkpoint(accelerator, checkpoints, step + 1)
    if accelerator.is_main_process:
        save_pipeline(config, accelerator.unwrap_model(model), ema, vae, tokenizer, scheduler)


def training_caption(config: TinySDConfig, index: int, rng: np.random.Generator) -> str:
    if rng.random() < config.empty_prompts:
        return ""
    return recaption(scene_of(config, index), rng, heldout_names=True).caption


def save_pipeline(config, model, ema, vae, tokenizer, scheduler) -> None:  # type: ignore[no-untyped-def]
    """Write the averaged weights as an ordinary fp16 Stable Diffusion pipeline."""
    ema.copy_to(model.parameters())
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16)
    with replace_folder(config.output_dir / "pipeline") as temporary:
        pipeline.save_pretrained(temporary)
    write_json(config.output_dir / "run.json", {"config": asdict(config)})
    logger.info("TinySD written to %s", config.output_dir / "pipeline")


if __name__ == "__main__":
    main()
