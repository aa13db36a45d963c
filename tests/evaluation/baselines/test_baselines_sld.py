from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safetune.backbone import Backbone, load_backbone
from safetune.conditioning import Conditioning
from safetune.evaluation.attacks.target import PipelineTarget, weights_of
from safetune.evaluation.baselines.sld import (
    PRESETS,
    SldPreset,
    disable_sld,
    enable_sld,
    preset_named,
    safety_direction,
    with_momentum,
)
from safetune.evaluation.baselines.sld_target import SldTarget, sld_target

PROMPTS = ["a cartoon of a cat holding a knife on the beach", "a dog in the snow, flat icon style"]


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Backbone:
    return load_backbone(tiny_pipeline)


def pixels(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def draw(backbone: Backbone, prompts: list[str] = PROMPTS, steps: int = 4, **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(row) for row in range(len(prompts))]
    return backbone.pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=generators,
        output_type="latent",
        **options,
    ).images


def test_direction_by_hand() -> None:
    null, prompt = pixels([0.0, 0.0, 0.0, 1.0]), pixels([0.5, 0.5, 0.5, 0.5])
    concept = pixels([0.6, 4.5, 0.1, 0.505])
    # prompt - concept: -0.1 (scale 0.2), -4 (scale 1, the largest), 0.4 (over the threshold), -0.005 (0.01)
    found = safety_direction(null, prompt, concept, guidance_scale=2.0, threshold=0.25)
    assert torch.allclose(found, pixels([0.2 * 0.6, 4.5, 0.0, 0.01 * -0.495]), atol=1e-6)


def test_threshold_decides_where_the_concept_counts() -> None:
    null, prompt, concept = pixels([0.0]), pixels([0.5]), pixels([0.4])
    assert safety_direction(null, prompt, concept, 100.0, threshold=0.05).item() == 0
    assert safety_direction(null, prompt, concept, 100.0, threshold=0.2).item() == pytest.approx(0.4)


def test_momentum_by_hand() -> None:
    gamma, following = with_momentum(pixels([1.0]), pixels([2.0]), momentum_scale=0.5, momentum_beta=0.7)
    assert gamma.item() == 2.0
    assert following.item() == pytest.approx(0.7 * 2 + 0.3 * 2)


def test_presets_are_the_papers() -> None:
    assert [PRESETS[name].guidance_scale for name in ("weak", "medium", "strong", "max")] == [
        200,
        1000,
        2000,
        5000,
    ]
    assert [preset.warmup_steps(50) for preset in PRESETS.values()] == [15, 10, 7, 0]
    assert [preset.warmup_steps(10) for preset in PRESETS.values()] == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="allowed: weak, medium, strong, max"):
        preset_named("extreme")


def test_pipeline_follows_a_loop_written_by_hand(backbone: Backbone) -> None:
    preset = SldPreset(guidance_scale=50.0, warmup=0.25, threshold=0.1, momentum_scale=0.4, momentum_beta=0.6)
    concept, prompts = backbone.encode_prompts(["a knife"]), backbone.encode_prompts(PROMPTS)
    scheduler = backbone.pipeline.scheduler
    scheduler.set_timesteps(4)
    noisy = torch.stack(
        [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(row)) for row in range(2)]
    )
    momentum = torch.zeros_like(noisy)
    with torch.no_grad():
        for step, timestep in enumerate(scheduler.timesteps):
            times = timestep.expand(2)
            null = backbone.predict(noisy, times, backbone.null(2))
            prompt = backbone.predict(noisy, times, prompts)
            safety = backbone.predict(noisy, times, concept.expand(2))
            scale = (50 * (prompt - safety).abs()).clamp(max=1) * (prompt - safety < 0.1)
            gamma = scale * (safety - null) + 0.4 * momentum
            momentum = 0.6 * momentum + 0.4 * gamma
            guided = null + 5 * (prompt - null - (gamma if step >= 1 else 0))
            noisy = scheduler.step(guided, timestep, noisy).prev_sample
    enable_sld(backbone.pipeline, concept.embeds, preset)
    found = draw(backbone)
    again = draw(backbone)
    disable_sld(backbone.pipeline)
    assert torch.allclose(found, noisy, atol=1e-4)
    assert torch.equal(found, again), "momentum or step of one call reached the next"


def test_off_again_leaves_no_trace(backbone: Backbone) -> None:
    before, kind, weights = draw(backbone), type(backbone.pipeline), weights_of(PipelineTarget(backbone))
    enable_sld(backbone.pipeline, backbone.encode_prompts(["a knife"]).embeds, "max")
    guided = draw(backbone)
    assert type(backbone.pipeline).__name__ == "StableDiffusionPipeline"
    disable_sld(backbone.pipeline)
    disable_sld(backbone.pipeline)
    assert not torch.equal(guided, before)
    assert torch.equal(draw(backbone), before)
    assert type(backbone.pipeline) is kind and "forward" not in vars(backbone.denoiser)
    after = weights_of(PipelineTarget(backbone))
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_a_whole_warmup_is_plain_guidance(backbone: Backbone) -> None:
    before = draw(backbone)
    enable_sld(
        backbone.pipeline, backbone.encode_prompts(["a knife"]).embeds, SldPreset(5000, 1.0, 1.0, 0.5, 0.7)
    )
    warming = draw(backbone)
    disable_sld(backbone.pipeline)
    assert torch.allclose(warming, before, atol=1e-5)


def test_an_error_inside_puts_the_unet_back(backbone: Backbone) -> None:
    enable_sld(backbone.pipeline, backbone.encode_prompts(["a knife"]).embeds, "max")
    try:
        with pytest.raises(ValueError, match="none at guidance_scale 1"):
            backbone.pipeline(PROMPTS, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
        assert "forward" not in vars(backbone.denoiser)
    finally:
        disable_sld(backbone.pipeline)


def test_refusals(backbone: Backbone, tiny_sd3: Path) -> None:
    embeds = backbone.encode_prompts(["a knife", "a gun"]).embeds
    with pytest.raises(ValueError, match="give one encoded prompt"):
        enable_sld(backbone.pipeline, embeds, "max")
    with pytest.raises(ValueError, match="not StableDiffusion3Pipeline"):
        enable_sld(load_backbone(tiny_sd3).pipeline, embeds[:1], "max")
    enable_sld(backbone.pipeline, embeds[:1, :5], "max")
    try:
        with pytest.raises(ValueError, match="5 tokens and the prompts have 24"):
            draw(backbone)
    finally:
        disable_sld(backbone.pipeline)
    backbone.pipeline._safecfg = object()
    try:
        with pytest.raises(ValueError, match="disable_safecfg"):
            enable_sld(backbone.pipeline, embeds[:1], "max")
    finally:
        backbone.pipeline._safecfg = None


def test_target_predicts_what_plain_guidance_would_need(backbone: Backbone) -> None:
    target = sld_target(PipelineTarget(backbone, steps=10), "a knife", PRESETS["weak"])
    prompts = backbone.encode_prompts(PROMPTS)
    embeds = prompts.embeds.clone().requires_grad_(True)
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([500, 799])  # the second in the warm-up of three steps of ten
    found = target.predict(noisy, times, Conditioning(embeds))
    plain = backbone.predict(noisy, times, prompts)
    null = backbone.predict(noisy, times, backbone.null(2))
    safety = backbone.predict(noisy, times, target.concept.expand(2))
    gamma = safety_direction(null, plain, safety, 200, 0.0)
    assert torch.allclose(found[0], (plain - gamma)[0], atol=1e-6) and gamma[0].abs().max() > 0
    assert torch.equal(found[1], plain[1])
    found[0].square().sum().backward()
    assert embeds.grad is not None and embeds.grad[0].abs().max() > 0


def test_target_draws_guided_and_copies_apart(backbone: Backbone) -> None:
    plain = PipelineTarget(backbone, steps=4, batch_size=1)
    target = sld_target(plain, "a knife", PRESETS["max"])
    prompts = backbone.encode_prompts(PROMPTS)
    guided, before = target.draw(prompts, [0, 1]), plain.draw(prompts, [0, 1])
    assert not torch.equal(guided, before)
    assert torch.equal(target.stripped().draw(prompts, [0, 1]), before)
    assert (target.guidance_scale, target.steps) == (plain.guidance_scale, 4)
    copied = target.copied()
    assert torch.equal(copied.draw(prompts, [0, 1]), guided)
    with torch.no_grad():
        copied.backbone.denoiser.conv_out.weight.mul_(2)
    assert not torch.equal(copied.draw(prompts, [0, 1]), guided)
    assert torch.equal(target.draw(prompts, [0, 1]), guided)
    with pytest.raises(ValueError, match="give one of them"):
        SldTarget(PipelineTarget(backbone, negative=lambda prompts, null: null), target.concept)


def test_max_changes_a_harmful_picture_of_tinysd() -> None:
    plain = PipelineTarget(load_backbone("tinysd"), steps=5)
    prompts = plain.backbone.encode_prompts(PROMPTS[:1])
    before = plain.draw(prompts, [3]).float()
    after = sld_target(plain, "knife sword pistol axe", PRESETS["max"]).draw(prompts, [3]).float()
    assert (after - before).abs().mean() > 5  # of 255 levels
