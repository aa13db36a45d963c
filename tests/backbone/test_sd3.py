"""The SD 3 backbone against the pipeline that it wraps."""

import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from safetune.backbone import load_backbone
from safetune.backbone.sd3 import StableDiffusion3Backbone
from safetune.conditioning import Conditioning, cat
from tests.backbone.calls import recorded_calls
from tests.tiny import build_tiny_sd3

PROMPTS = ["a cat in the forest", "a dog", "a cat in the forest" + " and a dog" * 20]


@pytest.fixture(params=(True, False), ids=("t5", "no-t5"))
def backbone(request: pytest.FixtureRequest, tiny_sd3: Path, tmp_path: Path) -> StableDiffusion3Backbone:
    backbone = load_backbone(tiny_sd3 if request.param else build_tiny_sd3(tmp_path, with_t5=False))
    assert isinstance(backbone, StableDiffusion3Backbone)
    assert backbone.has_t5 == request.param
    return backbone


def test_prompts_as_the_pipeline_encodes_them(backbone: StableDiffusion3Backbone) -> None:
    embeds, negative, pooled, negative_pooled = backbone.pipeline.encode_prompt(PROMPTS, None, None)
    ours, null = backbone.encode_prompts(PROMPTS), backbone.null()
    assert torch.equal(ours.embeds, embeds)
    assert ours.pooled is not None and torch.equal(ours.pooled, pooled)
    torch.testing.assert_close(null.embeds, negative[:1])
    torch.testing.assert_close(null.pooled, negative_pooled[:1])
    assert ours.embeds.shape == (3, 24 + 256, 112)
    assert bool(ours.embeds[:, 24:].any()) == backbone.has_t5
    assert not ours.embeds[:, :24, 32 + 64 :].any()


def test_each_text_encoders_limit_is_counted(tiny_sd3: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone(tiny_sd3)
    with caplog.at_level(logging.WARNING):
        backbone.encode_prompts(["a cat", "a cat" + " and a dog" * 12, "a dog" + " in the forest" * 100])
    (record,) = caplog.records
    assert record.getMessage() == (
        "of 3 prompts some are too long and were cut: 2 at 24 tokens, 1 at 256 tokens"
    )


def test_timesteps_are_rows_of_the_shifted_table(tiny_sd3: Path) -> None:
    backbone = load_backbone(tiny_sd3)
    assert isinstance(backbone, StableDiffusion3Backbone)
    # shift 3: sigma = 3 s / (1 + 2 s) with s = (t + 1) / 1000
    t, expected = torch.tensor([0, 249, 499, 999]), torch.tensor([0.003 / 1.002, 0.5, 0.75, 1.0])
    torch.testing.assert_close(backbone.sigmas[t], expected)
    torch.testing.assert_close(backbone.scaled_sigmas[t], 1000 * expected)
    noisy = backbone.add_noise(torch.full((4, 1, 1, 1), 2.0), torch.full((4, 1, 1, 1), -6.0), t)
    torch.testing.assert_close(noisy.flatten(), 2 - 8 * expected)


def test_noise_as_the_scheduler_adds_it(tiny_sd3: Path) -> None:
    backbone = load_backbone(tiny_sd3)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(backbone.pipeline.scheduler.config)
    expected = scheduler.scale_noise(latents, scheduler.timesteps[999 - t], noise)
    # The pipeline's own table is gone once it has sampled.
    backbone.pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="latent")
    assert torch.equal(backbone.add_noise(latents, noise, t), expected)


def test_a_step_along_the_true_output_ends_at_the_latents(tiny_sd3: Path) -> None:
    backbone = load_backbone(tiny_sd3)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([999, 249])
    noisy, output = backbone.add_noise(latents, noise, t), backbone.true_output(latents, noise, t)
    assert backbone.prediction_type == "flow"
    assert backbone.alphas_cumprod is None
    assert torch.equal(output, noise - latents)
    torch.testing.assert_close(noisy - torch.tensor([1.0, 0.5]).view(2, 1, 1, 1) * output, latents)


def test_the_denoiser_is_called_as_the_pipeline_calls_it(backbone: StableDiffusion3Backbone) -> None:
    # The pipeline shifts the sigmas that it is given: (t + 1) / 1000 becomes row t of the table.
    with recorded_calls(backbone.denoiser) as calls, torch.no_grad():
        backbone.pipeline(PROMPTS, sigmas=[0.7], height=64, width=96, output_type="latent")
        rows = cat([backbone.null().expand(3), backbone.encode_prompts(PROMPTS)])
        backbone.predict(calls[0]["hidden_states"], torch.full((6,), 699), rows)
    theirs, ours = calls
    assert torch.equal(ours["hidden_states"], theirs["hidden_states"])
    for name in ("timestep", "encoder_hidden_states", "pooled_projections", "output"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_what_is_not_supported(tiny_sd3: Path) -> None:
    backbone = load_backbone(tiny_sd3)
    with pytest.raises(ValueError, match="needs pooled embeddings"):
        backbone.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), Conditioning(backbone.null().embeds))
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="give the pipeline a FlowMatchEulerDiscreteScheduler"):
        StableDiffusion3Backbone(pipeline)
