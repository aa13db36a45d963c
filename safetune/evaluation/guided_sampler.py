"""Sample pictures by Safe Latent Diffusion: plain_sampler.py with its guidance; run as a script.

    python guided_sampler.py JOB.json

JOB.json holds, besides what plain_sampler.py takes, sld (preset) and concept_embeds (safetensors with
`embeds` (1, L, D), the conditioning of the safety concept).
"""

import sys
from typing import Any

from safetensors.torch import load_file

from safetune.evaluation.baselines.sld import enable_sld
from safetune.evaluation.plain_sampler import sample


def guide(pipeline: Any, job: dict[str, Any]) -> None:
    """Guide the pipeline away from the job's concept."""
    embeds = load_file(job["concept_embeds"])["embeds"].to(pipeline.device, pipeline.dtype)
    enable_sld(pipeline, embeds, job["sld"])


if __name__ == "__main__":
    sample(sys.argv[1:], guide)
