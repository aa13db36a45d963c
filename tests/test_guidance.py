"""SafeCFG in diffusers: exact where it must change nothing, and the formula by hand where it acts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from safetune.backbone import load_backbone
from safetune.conditioning import Conditioning
from safetune.guidance import SafeCFGGuidance, disable_safecfg, enable_safecfg, safecfg_negative
from safetune.hgr import HGR

PROMPTS = ["a cat with a knife in its hand in the forest", "a dog in the city", "a fox"]


def build_hgr(fingerprint: str = "", trained: bool = True) -> HGR:
    torch.manual_seed(0)
    hgr = HGR(128, 24, width=32, base_fingerprint=fingerprint).eval()
    if trained:
        torch.nn.init.normal_(hgr.project_out.weight, std=0.5)
    return hgr


def sample(pipeline: StableDiffusionPipeline, prompts: list[str] = PROMPTS, **options: object) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    settings = {"num_inference_steps": 3, "guidance_scale": 5.0, **options}
    return pipeline(prompts, generator=generators, output_type="np", **settings).images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_redirector_is_plain_cfg_bit_for_bit(tiny_pipeline: Path, dtype: torch.dtype) -> None:
    backbone = load_backbone(tiny_pipeline, dtype=dtype)
    plain = sample(backbone.pipeline)
    untrained = build_hgr(backbone.fingerprint, trained=False)
    negative = safecfg_negative(backbone, untrained, PROMPTS).embeds
    assert np.array_equal(sample(backbone.pipeline, negative_prompt_embeds=negative), plain)
    enable_safecfg(backbone.pipeline, untrained)
    assert np.array_equal(sample(backbone.pipeline), plain)


def test_hook_equals_negative_embeds_and_goes_away(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    hgr, plain = build_hgr(backbone.fingerprint), sample(backbone.pipeline)
    negative = safecfg_negative(backbone, hgr, PROMPTS).embeds
    expected = sample(backbone.pipeline, negative_prompt_embeds=negative)
    assert not np.allclose(expected, plain, atol=1e-3)
    enable_safecfg(backbone.pipeline, hgr)
    np.testing.assert_allclose(sample(backbone.pipeline), expected, atol=1e-5)
    disable_safecfg(backbone.pipeline)
    assert np.array_equal(sample(backbone.pipeline), plain)


def test_strength_zero_and_an_empty_range_are_plain_cfg_exactly(tiny_pipeline: Path) -> None:
    pipeline = load_backbone(tiny_pipeline).pipeline
    plain = sample(pipeline)
    enable_safecfg(pipeline, build_hgr(), strength=0.0)
    assert np.array_equal(sample(pipeline), plain)
    enable_safecfg(pipeline, build_hgr(), start=0.99, stop=1.0)
    assert np.array_equal(sample(pipeline), plain)


def test_a_prompt_is_guided_the_same_alone_and_in_a_batch(tiny_pipeline: Path) -> None:
    pipeline = load_backbone(tiny_pipeline).pipeline
    enable_safecfg(pipeline, build_hgr())
    np.testing.assert_allclose(sample(pipeline, PROMPTS[:1]), sample(pipeline)[:1], atol=1e-5)


def test_a_negative_prompt_is_kept_and_composed(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    pipeline, hgr = backbone.pipeline, build_hgr()
    with torch.no_grad():
        own = backbone.encode_prompts(["a robot"] * 3).embeds
        composed = own + hgr.delta(backbone.encode_prompts(PROMPTS)).embeds
    expected = sample(pipeline, negative_prompt_embeds=composed)
    enable_safecfg(pipeline, hgr)
    np.testing.assert_allclose(sample(pipeline, negative_prompt=["a robot"] * 3), expected, atol=1e-5)


def test_several_images_per_prompt_and_no_third_pass(tiny_pipeline: Path) -> None:
    pipeline = load_backbone(tiny_pipeline).pipeline
    batches = []
    pipeline.unet.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    enable_safecfg(pipeline, build_hgr())
    images = pipeline(PROMPTS[0], num_images_per_prompt=2, num_inference_steps=3, output_type="np").images
    assert len(images) == 2
    assert batches == [4, 4, 4]


def test_img2img(tiny_pipeline: Path) -> None:
    base = load_backbone(tiny_pipeline).pipeline
    pipeline = StableDiffusionImg2ImgPipeline(**base.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    image = np.full((1, 64, 64, 3), 0.5, dtype=np.float32)

    def draw() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            PROMPTS[0], image=image, generator=generator, num_inference_steps=4, output_type="np"
        ).images

    plain = draw()
    enable_safecfg(pipeline, build_hgr())
    assert not np.allclose(draw(), plain, atol=1e-3)


def test_no_guidance_is_refused(tiny_pipeline: Path) -> None:
    pipeline = load_backbone(tiny_pipeline).pipeline
    enable_safecfg(pipeline, build_hgr())
    with pytest.raises(RuntimeError, match=r"there is none at guidance_scale 1\.0: give more than 1"):
        sample(pipeline, guidance_scale=1.0)


def test_a_range_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"start 0\.8, stop 0\.2"):
        enable_safecfg(
            StableDiffusionPipeline.__new__(StableDiffusionPipeline), build_hgr(), start=0.8, stop=0.2
        )


def test_guider_redirects_the_unconditional_input_only() -> None:
    guider, hgr = SafeCFGGuidance(guidance_scale=5.0, strength=0.5), build_hgr()
    guider.hgr = hgr
    guider.set_state(step=0, num_inference_steps=1, timestep=torch.tensor(0))
    positive, negative = torch.randn(2, 24, 128), torch.randn(2, 24, 128)
    cond, uncond = guider.prepare_inputs({"prompt_embeds": (positive, negative)})
    assert torch.equal(cond.prompt_embeds, positive)
    expected = negative + 0.5 * hgr.delta(Conditioning(positive)).embeds
    torch.testing.assert_close(uncond.prompt_embeds, expected)
    cond.noise_pred, uncond.noise_pred = torch.full((1,), 3.0), torch.full((1,), 1.0)
    assert guider([cond, uncond]).pred.item() == pytest.approx(1 + 5 * (3 - 1))


def test_guider_without_a_redirector() -> None:
    with pytest.raises(RuntimeError, match="this guider has no redirector"):
        SafeCFGGuidance().prepare_inputs({})
