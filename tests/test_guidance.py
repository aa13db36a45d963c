"""SafeCFG in a classic pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from safetune.backbone import load_backbone
from safetune.guidance import safecfg_negative_embeds
from safetune.hgr import HGR

PROMPTS = ["a cat with a knife in its hand in the forest", "a dog in the city", "a fox"]


def sample(pipeline: StableDiffusionPipeline, negative: torch.Tensor | None) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipeline(
        PROMPTS,
        negative_prompt_embeds=negative,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=generators,
        output_type="np",
    ).images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_redirector_is_plain_cfg_bit_for_bit(tiny_pipeline: Path, dtype: torch.dtype) -> None:
    backbone = load_backbone(tiny_pipeline, dtype=dtype)
    hgr = HGR(128, 24, width=32, base_fingerprint=backbone.fingerprint).eval()
    plain = sample(backbone.pipeline, None)
    assert np.array_equal(sample(backbone.pipeline, safecfg_negative_embeds(backbone, hgr, PROMPTS)), plain)
    torch.nn.init.normal_(hgr.project_out.weight)
    assert not np.array_equal(
        sample(backbone.pipeline, safecfg_negative_embeds(backbone, hgr, PROMPTS)), plain
    )
