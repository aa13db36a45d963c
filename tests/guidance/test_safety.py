"""What would leave a picture without redirection is an error, and names what to do."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline, StableDiffusionPipeline
from torch import nn

from safetune.guidance import disable_safecfg, enable_safecfg, safecfg_negative
from safetune.hgr import HGR
from tests.guidance.families import PROMPTS, Family, as_arguments, draw, redirected
from tests.tiny import build_tiny_pipeline


def test_no_guidance(family: Family) -> None:
    enable_safecfg(family.pipeline, family.hgr)
    with pytest.raises(ValueError, match=r"there is none at guidance_scale 1\.0 .* call disable_safecfg"):
        draw(family.pipeline, guidance_scale=1.0)
    disable_safecfg(family.pipeline)
    draw(family.pipeline, guidance_scale=1.0)


def test_guidance_that_a_callback_turns_off(sd1: Family) -> None:
    def turn_off(pipeline: DiffusionPipeline, step: int, t: int, tensors: dict) -> dict:
        pipeline._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}

    enable_safecfg(sd1.pipeline, sd1.hgr)
    with pytest.raises(ValueError, match=r"there is none at guidance_scale 0\.0"):
        draw(
            sd1.pipeline, callback_on_step_end=turn_off, callback_on_step_end_tensor_inputs=["prompt_embeds"]
        )


@pytest.mark.parametrize(
    ("tokens", "width", "pooled", "message"),
    [
        (24, 64, 48, r"shape \(24, 64\) and pooled width 48, the pipeline gives \(24, 96\) and 48"),
        (20, 96, 48, r"shape \(20, 96\) and pooled width 48, the pipeline gives \(24, 96\) and 48"),
        (24, 96, 0, r"shape \(24, 96\) and pooled width 0, the pipeline gives \(24, 96\) and 48"),
    ],
)
def test_an_hgr_of_another_shape(
    load: Callable[..., Family], tokens: int, width: int, pooled: int, message: str
) -> None:
    family = load("sdxl")
    hgr = HGR(width, tokens, 16, 1, 2, pooled, base_fingerprint=family.backbone.fingerprint)
    enable_safecfg(family.pipeline, hgr, strength=0.0)
    with pytest.raises(ValueError, match=message):
        draw(family.pipeline)
    with pytest.raises(ValueError, match=message):
        safecfg_negative(family.backbone, hgr, PROMPTS)


def test_longer_prompts_than_the_hgr_was_trained_on(load: Callable[..., Family]) -> None:
    family = load("sd3")
    enable_safecfg(family.pipeline, family.hgr)
    with pytest.raises(ValueError, match=r"takes prompts of shape \(280, 112\) .* gives \(88, 112\)"):
        draw(family.pipeline, max_sequence_length=64)


def test_an_hgr_of_another_base_leaves_the_right_one_in_force(family: Family) -> None:
    enable_safecfg(family.pipeline, family.hgr)
    guided = draw(family.pipeline)
    other = copy.deepcopy(family.hgr)
    other.base_fingerprint = "0123456789abcdef"
    with pytest.raises(ValueError, match=r"belongs to the base model 0123456789abcdef, the one given is"):
        enable_safecfg(family.pipeline, other)
    assert torch.equal(draw(family.pipeline), guided)


def test_a_fingerprint_that_is_known_is_not_computed(sd1: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetune.guidance.redirection.own_fingerprint", None)
    enable_safecfg(sd1.pipeline, sd1.hgr, fingerprint=sd1.backbone.fingerprint)
    with pytest.raises(ValueError, match="the one given is xyz"):
        enable_safecfg(sd1.pipeline, sd1.hgr, fingerprint="xyz")


def test_an_hgr_that_names_no_base_is_warned_of(sd1: Family, caplog: pytest.LogCaptureFixture) -> None:
    sd1.hgr.base_fingerprint = ""
    with caplog.at_level(logging.WARNING):
        enable_safecfg(sd1.pipeline, sd1.hgr)
    assert "names no base model" in caplog.text


def test_a_denoiser_that_is_reached_past_the_hook(sd1: Family) -> None:
    class Shortcut(StableDiffusionPipeline):
        @torch.no_grad()
        def __call__(self, *args: object, **options: object) -> object:
            return self.unet.forward(torch.zeros(2, 4, 16, 16).double(), 1, torch.zeros(2, 24, 128).double())

    pipeline = Shortcut(**sd1.pipeline.components, requires_safety_checker=False)
    enable_safecfg(pipeline, sd1.hgr)
    with pytest.raises(RuntimeError, match="reached its denoiser past SafeCFG"):
        pipeline()


def test_another_pipeline_of_the_same_denoiser(sd1: Family) -> None:
    enable_safecfg(sd1.pipeline, sd1.hgr)
    other = AutoPipelineForImage2Image.from_pipe(sd1.pipeline)
    assert type(other).__name__ == "StableDiffusionImg2ImgPipeline"
    options = {"image": torch.zeros(1, 3, 64, 64).double(), "num_inference_steps": 2, "output_type": "latent"}

    def paint(**more: object) -> torch.Tensor:
        return other(PROMPTS[0], generator=torch.Generator().manual_seed(0), **options, **more).images

    with pytest.raises(RuntimeError, match="was called from elsewhere: call enable_safecfg on the pipeline"):
        paint()
    enable_safecfg(other, sd1.hgr)
    guided = paint()
    disable_safecfg(sd1.pipeline)
    assert torch.equal(paint(), guided)
    with pytest.raises(RuntimeError, match="was called from elsewhere"):
        draw(sd1.pipeline)
    disable_safecfg(other)
    expected = paint(**as_arguments(redirected(sd1, PROMPTS[:1])))
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


def test_a_pipeline_that_is_gone_leaves_its_denoiser_free(sd1: Family) -> None:
    other = StableDiffusionPipeline(**sd1.pipeline.components, requires_safety_checker=False)
    plain = draw(sd1.pipeline)
    enable_safecfg(other, sd1.hgr)
    del other
    assert torch.equal(draw(sd1.pipeline), plain)


def test_a_denoiser_that_was_replaced(sd1: Family, tmp_path: Path) -> None:
    enable_safecfg(sd1.pipeline, sd1.hgr)
    sd1.pipeline.unet = StableDiffusionPipeline.from_pretrained(build_tiny_pipeline(tmp_path, seed=1)).unet
    with pytest.raises(RuntimeError, match="another denoiser than enable_safecfg has seen"):
        draw(sd1.pipeline)


def test_copies_of_a_guided_denoiser_and_pipeline(sd1: Family) -> None:
    plain = draw(sd1.pipeline)
    enable_safecfg(sd1.pipeline, sd1.hgr)
    copied = copy.deepcopy(sd1.pipeline)
    with pytest.raises(RuntimeError, match="call enable_safecfg again"):
        draw(copied)
    enable_safecfg(copied, sd1.hgr)
    assert torch.equal(draw(copied), draw(sd1.pipeline))
    disable_safecfg(copied)
    assert torch.equal(draw(copied), plain)
    average = copy.deepcopy(sd1.pipeline.unet)  # as a moving average of the weights is made
    average(torch.zeros(1, 4, 16, 16).double(), 1, encoder_hidden_states=torch.zeros(1, 24, 128).double())


def test_an_unknown_pipeline_is_refused() -> None:
    class StableDiffusionPAGPipeline(DiffusionPipeline):
        def __init__(self, unet: nn.Module) -> None:
            super().__init__()
            self.register_modules(unet=unet)

    with pytest.raises(ValueError, match=r"does not know StableDiffusionPAGPipeline, only StableDiffusion"):
        enable_safecfg(StableDiffusionPAGPipeline(nn.Linear(1, 1)), HGR(8, 6, width=16, heads=2))


def test_a_run_that_fails_leaves_the_gate_closed(sd1: Family) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    enable_safecfg(sd1.pipeline, sd1.hgr)
    guided = draw(sd1.pipeline)
    with pytest.raises(KeyboardInterrupt):
        draw(sd1.pipeline, callback_on_step_end=fail)
    with pytest.raises(RuntimeError, match="was called from elsewhere"):
        sd1.pipeline.unet(torch.zeros(1, 4, 16, 16).double(), 1, torch.zeros(1, 24, 128).double())
    assert torch.equal(draw(sd1.pipeline), guided)


def test_the_pipeline_keeps_its_class_for_saving_and_gets_it_back(sd1: Family, tmp_path: Path) -> None:
    enable_safecfg(sd1.pipeline, sd1.hgr)
    enable_safecfg(sd1.pipeline, sd1.hgr)
    assert isinstance(sd1.pipeline, StableDiffusionPipeline)
    sd1.pipeline.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline
    disable_safecfg(sd1.pipeline)
    assert type(sd1.pipeline) is StableDiffusionPipeline
    disable_safecfg(sd1.pipeline)


def test_safecfg_negative_refuses_another_base(sd1: Family) -> None:
    sd1.hgr.base_fingerprint = "abc"
    with pytest.raises(ValueError, match="belongs to the base model abc"):
        safecfg_negative(sd1.backbone, sd1.hgr, PROMPTS)
