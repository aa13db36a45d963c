"""The SD 1.x backbone against the pipeline that it wraps."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.backbone.fingerprint import weights_fingerprint


def test_prompts_as_the_pipeline_encodes_them(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    prompts = ["a cat in the forest", "a dog"]
    cond, uncond = backbone.pipeline.encode_prompt(prompts, "cpu", 1, True)
    assert torch.equal(backbone.encode_prompts(prompts).embeds, cond)
    torch.testing.assert_close(backbone.null().embeds, uncond[:1])


def test_noise_as_the_scheduler_adds_it(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    latents, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    expected = backbone.pipeline.scheduler.add_noise(latents, noise, t)
    torch.testing.assert_close(backbone.add_noise(latents, noise, t), expected)


def test_latents_are_scaled_and_pictures_bounded(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    latents = backbone.encode_images(images)
    mean = backbone.pipeline.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(latents, mean * backbone.pipeline.vae.config.scaling_factor)
    decoded = backbone.decode(latents)
    assert decoded.shape == (3, 3, 64, 64)
    assert decoded.abs().max() <= 1


def test_everything_is_frozen(tiny_pipeline: Path) -> None:
    pipeline = load_backbone(tiny_pipeline).pipeline
    assert not any(
        p.requires_grad for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in m.parameters()
    )


def test_fingerprint_survives_a_cast_and_sees_a_change(tiny_pipeline: Path) -> None:
    half = load_backbone(tiny_pipeline, dtype=torch.bfloat16)
    full = load_backbone(tiny_pipeline)
    assert full.fingerprint == half.fingerprint
    next(full.denoiser.parameters()).data.add_(0.1)
    assert weights_fingerprint(full.denoiser) != half.fingerprint


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        load_backbone(tmp_path)


def test_an_unknown_family(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ValueError, match="KandinskyPipeline; supported pipelines: StableDiffusionPipeline"):
        load_backbone(tmp_path)
