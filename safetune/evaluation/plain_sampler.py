"""Sample pictures with plain diffusers and nothing of ours: run as a script, it never imports safetune.

    python plain_sampler.py JOB.json

JOB.json holds: base (folder), adapter (file or null), negative_embeds (safetensors with `embeds` (N, L, D),
or null), prompts (N), seeds (one per picture), steps, guidance_scale, dtype, batch_size, threads, and out
(.npy, N x H x W x 3, uint8).
"""

import json
import sys
from pathlib import Path
from typing import Any


def sample(job: dict[str, Any]) -> None:
    """Write the job's pictures as uint8; a finished output is not made again."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    pipeline = StableDiffusionPipeline.from_pretrained(
        job["base"], dtype=getattr(torch, job["dtype"]), use_safetensors=True
    )
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if job["adapter"]:
        adapter = Path(job["adapter"])
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
        pipeline.fuse_lora()
    negative = load_file(job["negative_embeds"])["embeds"] if job["negative_embeds"] else None
    pictures = []
    for start in range(0, len(job["prompts"]), job["batch_size"]):
        rows = slice(start, start + job["batch_size"])
        output = pipeline(
            job["prompts"][rows],
            negative_prompt_embeds=None
            if negative is None
            else negative[rows].to(pipeline.device, pipeline.unet.dtype),
            num_inference_steps=job["steps"],
            guidance_scale=job["guidance_scale"],
            generator=[torch.Generator().manual_seed(seed) for seed in job["seeds"][rows]],
            output_type="np",
        ).images
        pictures.append((output * 255).round().astype(np.uint8))
    temporary = Path(job["out"]).with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate(pictures))
    temporary.replace(job["out"])


if __name__ == "__main__":
    for path in sys.argv[1:]:
        sample(json.loads(Path(path).read_text()))
