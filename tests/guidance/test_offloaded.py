"""Offloading, as far as it runs without an accelerator."""

from collections.abc import Callable

import accelerate
import pytest
import torch
from diffusers import DiffusionPipeline

from safetune.guidance import enable_safecfg
from safetune.guidance.redirection import own_fingerprint
from tests.guidance.families import PROMPTS, Family, as_arguments, draw, redirected

CPU = torch.device("cpu")


def model_offload(pipeline: DiffusionPipeline) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipeline: DiffusionPipeline) -> None:
    """Of the denoiser alone: accelerate fails on text encoders where both devices are the CPU."""
    accelerate.cpu_offload(called(pipeline), CPU)


def group_offload(pipeline: DiffusionPipeline) -> None:
    pipeline.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def called(pipeline: DiffusionPipeline) -> torch.nn.Module:
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


@pytest.mark.parametrize("offload", [model_offload, sequential_offload, group_offload])
@pytest.mark.parametrize("enable_first", [True, False])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_an_offloaded_pipeline(
    load: Callable[..., Family], name: str, offload: Callable[[DiffusionPipeline], None], enable_first: bool
) -> None:
    family = load(name)
    expected = draw(family.pipeline, **as_arguments(redirected(family)))
    if enable_first:
        enable_safecfg(family.pipeline, family.hgr)
    offload(family.pipeline)
    assert own_fingerprint(called(family.pipeline)) == family.backbone.fingerprint
    if not enable_first:
        enable_safecfg(family.pipeline, family.hgr)
    for _ in range(2):  # each call ends by offloading everything anew
        torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_from_an_accelerator(load: Callable[..., Family], how: str) -> None:
    family = load("sdxl", torch.float32)
    negative = redirected(family)
    getattr(family.pipeline, how)()
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}

    def sample(**more: object) -> torch.Tensor:
        return family.pipeline(PROMPTS, generator=torch.Generator().manual_seed(0), **options, **more).images

    expected = sample(**as_arguments(negative))
    enable_safecfg(family.pipeline, family.hgr)
    torch.testing.assert_close(sample(), expected, rtol=1e-3, atol=1e-3)
