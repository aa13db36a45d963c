"""Classic pipelines of every family: exact where nothing may change, the formula by hand where it acts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from safetune.conditioning import Conditioning
from safetune.guidance import disable_safecfg, enable_safecfg, safecfg_negative
from safetune.hgr import HGR
from tests.guidance.families import (
    PROMPTS,
    STEPS,
    Family,
    as_arguments,
    build_hgr,
    draw,
    draw_by_hand,
    noise,
    redirected,
    widen_latents,
)

FAMILIES = ["sd1", "sd2", "sdxl", "sd3"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_is_plain_cfg_bit_for_bit(
    load: Callable[..., Family], name: str, dtype: torch.dtype
) -> None:
    family = load(name, dtype)
    plain, untrained = draw(family.pipeline), build_hgr(family.backbone, trained=False)
    negative = safecfg_negative(family.backbone, untrained, PROMPTS)
    assert torch.equal(draw(family.pipeline, **as_arguments(negative)), plain)
    enable_safecfg(family.pipeline, untrained)
    assert torch.equal(draw(family.pipeline), plain)


def test_strength_zero_is_plain_cfg_bit_for_bit(family: Family) -> None:
    plain = draw(family.pipeline)
    enable_safecfg(family.pipeline, family.hgr, strength=0.0)
    assert torch.equal(draw(family.pipeline), plain)


def test_equals_the_formula_by_hand_and_goes_away(family: Family) -> None:
    plain = draw(family.pipeline)
    expected = draw_by_hand(family, [redirected(family)] * STEPS)
    assert (expected - plain).abs().max() > 0.1
    enable_safecfg(family.pipeline, family.hgr)
    torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)
    disable_safecfg(family.pipeline)
    assert torch.equal(draw(family.pipeline), plain)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("silenced", ["project_out", "project_pooled"])
def test_embeddings_and_pooled_are_both_redirected(
    load: Callable[..., Family], name: str, silenced: str
) -> None:
    family = load(name)
    nn.init.zeros_(getattr(family.hgr, silenced).weight)
    plain, expected = draw(family.pipeline), draw_by_hand(family, [redirected(family)] * STEPS)
    assert (expected - plain).abs().max() > 1e-2
    enable_safecfg(family.pipeline, family.hgr)
    torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_guided_the_same_alone_and_in_a_batch(family: Family) -> None:
    enable_safecfg(family.pipeline, family.hgr)
    torch.testing.assert_close(
        draw(family.pipeline, PROMPTS[:1]), draw(family.pipeline)[:1], rtol=1e-5, atol=1e-5
    )


def test_clean_prompts_beside_harmful_ones_stay_as_they_were(family: Family) -> None:
    clean = family.backbone.encode_prompts(PROMPTS).embeds[1]

    def spare_clean(module: HGR, args: tuple[Tensor], output: tuple[Tensor, Tensor | None]) -> object:
        harmful = (args[0] - clean).abs().amax((1, 2)) > 1e-4
        return output[0] * harmful[:, None, None], None if output[1] is None else output[1] * harmful[:, None]

    family.hgr.register_forward_hook(spare_clean)
    plain = draw(family.pipeline)
    enable_safecfg(family.pipeline, family.hgr)
    changed = (draw(family.pipeline) - plain).abs().amax((1, 2, 3))
    assert changed[1] == 0
    assert changed[0] > 0.1 and changed[2] > 0.1


def test_saved_and_loaded_draws_the_same(family: Family, tmp_path: Path) -> None:
    enable_safecfg(family.pipeline, family.hgr)
    first = draw(family.pipeline)
    family.hgr.save_pretrained(tmp_path)
    enable_safecfg(family.pipeline, HGR.from_pretrained(tmp_path))
    assert torch.equal(draw(family.pipeline), first)


def test_a_negative_prompt_is_kept_and_composed(family: Family) -> None:
    own = family.backbone.encode_prompts(["a robot"] * len(PROMPTS))
    expected = draw_by_hand(family, [redirected(family, negative=own)] * STEPS)
    enable_safecfg(family.pipeline, family.hgr)
    given = draw(family.pipeline, negative_prompt=["a robot"] * len(PROMPTS))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert (given - draw(family.pipeline)).abs().max() > 0.1


def test_several_pictures_of_a_prompt_and_no_third_pass(family: Family) -> None:
    repeated = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    expected = draw_by_hand(family, [redirected(family, repeated)] * STEPS, repeated)
    rows, passes = [], []
    family.backbone.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["encoder_hidden_states"])),
        with_kwargs=True,
    )
    family.hgr.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    enable_safecfg(family.pipeline, family.hgr)
    found = draw(family.pipeline, PROMPTS[:2], noise(4), num_images_per_prompt=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert rows == [2 * 4] * STEPS
    assert passes == [4]


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_pictures_from_pictures(family: Family, task: str) -> None:
    if (family.name, task) == ("sd3", "inpaint"):
        widen_latents(family)
    pipeline = family.task(task)
    options: dict[str, object] = {"image": torch.full((3, 3, 64, 64), 0.5).double(), "strength": 0.7}
    if task == "inpaint":
        options["mask_image"] = torch.ones(3, 1, 64, 64).double()

    def paint(**more: object) -> Tensor:
        generator = [torch.Generator().manual_seed(row) for row in range(3)]
        settings = {"num_inference_steps": 5, "guidance_scale": 5.0, "output_type": "latent"}
        return pipeline(PROMPTS, generator=generator, **settings, **options, **more).images

    plain, expected = paint(), paint(**as_arguments(redirected(family)))
    assert (expected - plain).abs().max() > 0.1
    enable_safecfg(pipeline, family.hgr)
    torch.testing.assert_close(paint(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_guidance_rescale(load: Callable[..., Family], name: str) -> None:
    family = load(name)
    expected = draw(family.pipeline, guidance_rescale=0.7, **as_arguments(redirected(family)))
    enable_safecfg(family.pipeline, family.hgr)
    rescaled = draw(family.pipeline, guidance_rescale=0.7)
    torch.testing.assert_close(rescaled, expected, rtol=1e-5, atol=1e-5)
    assert (rescaled - draw(family.pipeline)).abs().max() > 1e-2


def test_an_sdxl_without_zeroed_negatives(load: Callable[..., Family]) -> None:
    family = load("sdxl")
    zeroed = redirected(family)
    family.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    empty = redirected(family)
    assert not torch.equal(zeroed.embeds, empty.embeds)
    expected = draw_by_hand(family, [empty] * STEPS)
    enable_safecfg(family.pipeline, family.hgr)
    torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)


def test_skip_layer_guidance_of_sd3_keeps_its_own_pass(load: Callable[..., Family]) -> None:
    family = load("sd3")
    skipping = {
        "skip_guidance_layers": [0],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    expected = draw(family.pipeline, **skipping, **as_arguments(redirected(family)))
    enable_safecfg(family.pipeline, family.hgr)
    skipped = draw(family.pipeline, **skipping)
    torch.testing.assert_close(skipped, expected, rtol=1e-5, atol=1e-5)
    assert (skipped - draw(family.pipeline)).abs().max() > 1e-2


def test_an_hgr_in_another_precision_than_the_prompts(load: Callable[..., Family]) -> None:
    family = load("sd1", torch.bfloat16)
    positive = family.backbone.encode_prompts(PROMPTS)
    delta = family.hgr(positive.embeds.float())[0].bfloat16()
    expected = Conditioning(family.backbone.null(len(PROMPTS)).embeds + delta)
    negative = safecfg_negative(family.backbone, family.hgr, PROMPTS)
    assert torch.equal(negative.embeds, expected.embeds)
