"""Latents made once and kept on disk, shard by shard: of given pictures, or drawn by the model itself."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.files import check_settings, fingerprint_of, write_json


def cached_latents(
    accelerator: Accelerator,
    folder: Path,
    key: dict[str, object],
    count: int,
    make: Callable[[range], Tensor],
    shard_rows: int = 64,
) -> Tensor:
    """Latents (count, C, h, w) on the CPU, from the shards in `folder`; those that are not there are made.

    `make(rows)` gives the latents of some rows. Processes share the missing shards between them, and an
    interrupted run goes on with those that are still missing. `key` is JSON that says what the latents
    depend on. Raises ValueError when the folder holds latents of another key.
    """
    facts = {**key, "rows": count, "shard_rows": shard_rows}
    check_settings(folder / "latents.json", facts, "--output_dir")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(folder / "latents.json", facts)
    paths = {
        folder / f"part-{number:05d}.safetensors": range(start, min(start + shard_rows, count))
        for number, start in enumerate(range(0, count, shard_rows))
    }
    missing = [path for path in paths if not path.is_file()]
    accelerator.wait_for_everyone()
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for path in tqdm(mine, desc="latents", unit="shard", disable=not accelerator.is_main_process):
        temporary = path.with_suffix(".tmp")
        save_file({"latents": make(paths[path]).cpu().contiguous()}, temporary)
        temporary.replace(path)
    accelerator.wait_for_everyone()
    return torch.cat([load_file(path)["latents"] for path in paths])


def drawn_latents(
    accelerator: Accelerator,
    folder: Path,
    backbone: Backbone,
    prompts: Sequence[str],
    numbers: Sequence[int],
    seed: int,
    resolution: int | tuple[int, int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
    shard_rows: int,
    **dependencies: object,
) -> Tensor:
    """draw_latents of N prompts through cached_latents: (N, C, h, w) on the CPU.

    A row's noise comes from `seed` and its number; `resolution` is pixels a side, or height and width.
    `dependencies` are what the pictures hang on besides.
    """
    states = [np.random.SeedSequence([seed, number]).generate_state(1) for number in numbers]
    seeds = [int(state[0]) for state in states]
    key = {
        "base": backbone.fingerprint,
        "resolution": resolution,
        "prompts": fingerprint_of(prompts),
        "seed": seed,
        "picture_steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": type(backbone.pipeline.scheduler).__name__,
        **dependencies,
    }

    def draw(rows: range) -> Tensor:
        chunk = slice(rows.start, rows.stop)
        with accelerator.autocast():
            return draw_latents(
                backbone, prompts[chunk], seeds[chunk], resolution, steps, guidance_scale, batch_size
            )

    return cached_latents(accelerator, folder, key, len(prompts), draw, shard_rows)


def native_resolution(backbone: Backbone) -> int:
    """Pixels a side that the model was trained for: its latents' side times the autoencoder's factor."""
    config: Any = backbone.denoiser.config
    side = config.sample_size
    return int(max(side) if isinstance(side, Sequence) else side) * latent_factor(backbone)


def latent_factor(backbone: Backbone) -> int:
    """Pixels a side of one latent pixel."""
    return int(backbone.pipeline.vae_scale_factor)


@torch.no_grad()
def draw_latents(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    resolution: int | tuple[int, int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
) -> Tensor:
    """Scaled latents (N, C, h, w) that the model draws of N prompts by CFG; no picture is decoded.

    A row depends on its own prompt and seed alone. `resolution` is pixels a side, or height and width.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    chunks = []
    with silent_diffusers():
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            output = backbone.pipeline(
                list(prompts[rows]),
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
                output_type="latent",
            )
            chunks.append(output.images)
    return torch.cat(chunks)


@contextmanager
def silent_diffusers() -> Iterator[None]:
    """No warnings of diffusers: they show what was cut off long prompts, and prompts stay out of logs."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
