"""Sample pictures with plain diffusers and nothing of ours: run as a script, it never imports safetune.

    python plain_sampler.py JOB.json

JOB.json holds: base (folder), adapter (file or null), denoiser (folder of other weights, or null),
negative_embeds (safetensors with `embeds` (N, L, D), and `pooled` (N, P) for SDXL and SD3, or null), prompts
(N), seeds (one per picture), steps, guidance_scale, scheduler (class of diffusers, or null for the base's),
dtype, batch_size, threads, and out (.npy, N x H x W x 3, uint8). Several jobs of the same weights in a row
load them once.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def load(job: dict[str, Any]) -> Any:
    """The job's pipeline, its adapter fused."""
    import torch
    from diffusers import DiffusionPipeline

    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    pipeline = DiffusionPipeline.from_pretrained(job["base"], dtype=dtype, use_safetensors=True)
    if job.get("scheduler"):
        kinds = {kind.__name__: kind for kind in pipeline.scheduler.compatibles}
        if job["scheduler"] not in kinds:
            own = type(pipeline.scheduler).__name__
            raise SystemExit(
                f"{job['scheduler']} cannot take the place of {own}; allowed: {', '.join(sorted(kinds))}"
            )
        pipeline.scheduler = kinds[job["scheduler"]].from_config(pipeline.scheduler.config)
    if job.get("denoiser"):
        name = "unet" if hasattr(pipeline, "unet") else "transformer"
        kind = type(getattr(pipeline, name))
        weights = kind.from_pretrained(job["denoiser"], dtype=dtype, use_safetensors=True)
        pipeline.register_modules(**{name: weights})
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if job["adapter"]:
        adapter = Path(job["adapter"])
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
        pipeline.fuse_lora()
    return pipeline


def draw(pipeline: Any, job: dict[str, Any]) -> None:
    """Write the job's pictures as uint8."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    negative = load_file(job["negative_embeds"]) if job["negative_embeds"] else {}
    names = {"embeds": "negative_prompt_embeds", "pooled": "negative_pooled_prompt_embeds"}
    pictures = []
    for start in range(0, len(job["prompts"]), job["batch_size"]):
        rows = slice(start, start + job["batch_size"])
        output = pipeline(
            job["prompts"][rows],
            **{
                names[key]: value[rows].to(pipeline.device, pipeline.dtype) for key, value in negative.items()
            },
            num_inference_steps=job["steps"],
            guidance_scale=job["guidance_scale"],
            generator=[torch.Generator().manual_seed(seed) for seed in job["seeds"][rows]],
            output_type="np",
        ).images
        pictures.append((output * 255).round().astype(np.uint8))
    temporary = Path(job["out"]).with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate(pictures))
    temporary.replace(job["out"])


def sample(paths: Sequence[str], prepare: Callable[[Any, dict[str, Any]], None] | None = None) -> None:
    """Draw the jobs in turn; `prepare` changes a pipeline before a job of its own draws with it."""
    weights, pipeline = None, None
    for path in paths:
        job = json.loads(Path(path).read_text())
        wanted = [job.get(key) for key in ("base", "scheduler", "adapter", "denoiser", "dtype", "threads")]
        if wanted != weights:
            weights, pipeline = wanted, load(job)
        if prepare is not None:
            prepare(pipeline, job)
        draw(pipeline, job)


if __name__ == "__main__":
    sample(sys.argv[1:])
