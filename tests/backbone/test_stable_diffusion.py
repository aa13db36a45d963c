"""The SD 1.x and 2.x backbone against the pipeline that it wraps."""

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

from safetune.backbone import load_backbone
from safetune.backbone.stable_diffusion import StableDiffusionBackbone
from safetune.conditioning import cat
from tests.backbone.calls import recorded_calls
from tests.tiny import tiny_unet


@pytest.fixture(params=("tiny_pipeline", "tiny_sd2"))
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_prompts_as_the_pipeline_encodes_them(folder: Path) -> None:
    backbone = load_backbone(folder)
    prompts = ["a cat in the forest", "a dog", "a cat in the forest" + " and a dog" * 20]
    cond, uncond = backbone.pipeline.encode_prompt(prompts, "cpu", 1, True)
    assert torch.equal(backbone.encode_prompts(prompts).embeds, cond)
    torch.testing.assert_close(backbone.null().embeds, uncond[:1])
    assert backbone.encode_prompts(prompts).pooled is None


def test_noise_as_the_scheduler_adds_it(folder: Path) -> None:
    backbone = load_backbone(folder)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    expected = backbone.pipeline.scheduler.add_noise(latents, noise, t)
    torch.testing.assert_close(backbone.add_noise(latents, noise, t), expected)


def test_true_output_is_the_noise_or_the_schedulers_velocity(tiny_pipeline: Path, tiny_sd2: Path) -> None:
    one, two = load_backbone(tiny_pipeline), load_backbone(tiny_sd2)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    assert (one.prediction_type, two.prediction_type) == ("epsilon", "v_prediction")
    assert one.true_output(latents, noise, t) is noise
    velocity = two.pipeline.scheduler.get_velocity(latents, noise, t)
    torch.testing.assert_close(two.true_output(latents, noise, t), velocity)


def test_the_denoiser_is_called_as_the_pipeline_calls_it(folder: Path) -> None:
    backbone, prompts = load_backbone(folder), ["a cat in the forest", "a dog"]
    with recorded_calls(backbone.denoiser) as calls, torch.no_grad():
        backbone.pipeline(prompts, num_inference_steps=1, height=64, width=96, output_type="latent")
        t = torch.as_tensor(calls[0]["timestep"]).expand(4)
        rows = cat([backbone.null().expand(2), backbone.encode_prompts(prompts)])
        backbone.predict(calls[0]["sample"], t, rows)
    theirs, ours = calls
    assert torch.equal(ours["sample"], theirs["sample"])
    torch.testing.assert_close(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
    torch.testing.assert_close(ours["output"], theirs["output"])


def test_another_scheduler_of_the_kind_changes_nothing(tiny_sd2: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd2)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    one, other = load_backbone(tiny_sd2), StableDiffusionBackbone(pipeline)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    assert other.prediction_type == "v_prediction"
    assert torch.equal(one.add_noise(latents, noise, t), other.add_noise(latents, noise, t))


def test_what_is_not_supported(tiny_sd2: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd2)
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type is 'sample'; supported: epsilon, v_prediction"):
        StableDiffusionBackbone(pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        StableDiffusionBackbone(pipeline)
    inpainting = StableDiffusionPipeline.from_pretrained(tiny_sd2)
    inpainting.unet = tiny_unet(cross_attention_dim=32, in_channels=9)
    with pytest.raises(ValueError, match="the denoiser takes 9 channels but latents have 4: inpainting"):
        StableDiffusionBackbone(inpainting)
