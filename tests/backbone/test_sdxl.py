"""The SDXL backbone against the pipeline that it wraps."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from safetune.backbone import load_backbone
from safetune.backbone.sdxl import size_ids
from safetune.conditioning import Conditioning, cat
from tests.backbone.calls import recorded_calls
from tests.tiny import build_tiny_sdxl

PROMPTS = ["a cat in the forest", "a dog", "a cat in the forest" + " and a dog" * 20]


def test_prompts_as_the_pipeline_encodes_them(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    embeds, _, pooled, _ = backbone.pipeline.encode_prompt(PROMPTS)
    ours = backbone.encode_prompts(PROMPTS)
    assert torch.equal(ours.embeds, embeds)
    assert ours.pooled is not None and torch.equal(ours.pooled, pooled)
    assert ours.mask is None


def test_null_is_what_the_pipeline_is_guided_away_from(tiny_sdxl: Path, tmp_path: Path) -> None:
    for folder in (tiny_sdxl, build_tiny_sdxl(tmp_path, force_zeros=False)):
        backbone = load_backbone(folder)
        _, embeds, _, pooled = backbone.pipeline.encode_prompt("a cat")
        null = backbone.null()
        torch.testing.assert_close(null.embeds, embeds)
        torch.testing.assert_close(null.pooled, pooled)
        assert bool(null.embeds.any()) == (folder != tiny_sdxl)
    # The empty prompt itself is never zeros: only `null` knows what the pipeline does without a negative.
    assert load_backbone(tiny_sdxl).encode_prompts([""]).embeds.any()


def test_noise_as_a_scheduler_adds_it(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    # The Euler scheduler that SDXL comes with adds noise in its own scale, which its UNet never sees.
    expected = DDPMScheduler.from_config(backbone.pipeline.scheduler.config).add_noise(latents, noise, t)
    torch.testing.assert_close(backbone.add_noise(latents, noise, t), expected)
    assert backbone.prediction_type == "epsilon"
    assert backbone.true_output(latents, noise, t) is noise


def test_the_denoiser_is_called_as_the_pipeline_calls_it(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    with recorded_calls(backbone.denoiser) as calls, torch.no_grad():
        backbone.pipeline(PROMPTS, num_inference_steps=1, height=64, width=96, output_type="latent")
        t = torch.as_tensor(calls[0]["timestep"]).expand(6)
        rows = cat([backbone.null().expand(3), backbone.encode_prompts(PROMPTS)])
        backbone.predict(calls[0]["sample"], t, rows)
    theirs, ours = calls
    for name in ("time_ids", "text_embeds"):
        assert torch.equal(ours["added_cond_kwargs"][name], theirs["added_cond_kwargs"][name])
        assert ours["added_cond_kwargs"][name].dtype == theirs["added_cond_kwargs"][name].dtype
    assert torch.equal(ours["sample"], theirs["sample"])
    assert torch.equal(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
    torch.testing.assert_close(ours["output"], theirs["output"])


def test_size_ids_are_height_then_width_in_pixels() -> None:
    assert size_ids(torch.zeros(2, 4, 128, 96), 8).tolist() == [[1024, 768, 0, 0, 1024, 768]] * 2


def test_the_autoencoder_works_in_fp32_where_fp16_overflows(tiny_sdxl: Path) -> None:
    half, full = load_backbone(tiny_sdxl, dtype=torch.float16), load_backbone(tiny_sdxl)
    full.pipeline.vae.half().float()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = half.encode_images(images)
    assert torch.equal(latents, full.encode_images(images))
    assert torch.equal(half.decode(latents), full.decode(latents))
    assert half.pipeline.vae.dtype == torch.float16


def test_pooled_embeddings_are_asked_for(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    with pytest.raises(ValueError, match="SDXL needs pooled embeddings"):
        backbone.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), Conditioning(backbone.null().embeds))
