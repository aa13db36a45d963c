"""SafeCFG as a guider: in the real modular pipelines of SDXL and SD 3, and by its own interface elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance, ModularPipeline
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_3 import StableDiffusion3AutoBlocks
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from torch import Tensor

from safetune.conditioning import Conditioning
from safetune.guidance import SafeCFGGuidance, enable_safecfg
from safetune.hgr import HGR
from tests.guidance.families import (
    PROMPTS,
    SCALE,
    STEPS,
    Family,
    build_hgr,
    draw_by_hand,
    noise,
    redirected,
)

BLOCKS = {"sdxl": StableDiffusionXLAutoBlocks, "sd3": StableDiffusion3AutoBlocks}


@pytest.fixture(params=list(BLOCKS))
def modular(request: pytest.FixtureRequest, load: Callable[..., Family]) -> tuple[Family, ModularPipeline]:
    family = load(request.param)
    pipeline = BLOCKS[request.param]().init_pipeline()
    own = {name: part for name, part in family.pipeline.components.items() if part is not None}
    pipeline.update_components(**{name: own[name] for name in own if name in pipeline._component_specs})
    pipeline.set_progress_bar_config(disable=True)
    return family, pipeline


def safecfg(hgr: HGR, **options: Any) -> SafeCFGGuidance:
    guider = SafeCFGGuidance(guidance_scale=SCALE, **options)
    guider.hgr = hgr
    return guider


class GivenNegative(ClassifierFreeGuidance):
    """Guidance away from given embeddings: what img2img and inpainting are compared with."""

    def __init__(self, negative: Conditioning) -> None:
        super().__init__(guidance_scale=SCALE)
        self.negative = negative

    def prepare_inputs(self, data: dict[str, Any]) -> list[BlockState]:
        name = "prompt_embeds" if "prompt_embeds" in data else "encoder_hidden_states"
        embeds, pooled = (data[name][0], self.negative.embeds), (data["text_embeds"][0], self.negative.pooled)
        return super().prepare_inputs({**data, name: embeds, "text_embeds": pooled})


def by_hand(family: Family, negatives: list[Conditioning], prompts: list[str] = PROMPTS) -> Tensor:
    """An SDXL is told the size of the latents."""
    return draw_by_hand(family, negatives, prompts, pixels=32)


def draw(
    pipeline: ModularPipeline, guider: ClassifierFreeGuidance, prompts: list[str] = PROMPTS, **options: Any
) -> Tensor:
    pipeline.update_components(guider=guider)
    if "negative_prompt" not in options and hasattr(pipeline, "transformer"):
        options["negative_prompt"] = ""  # SD 3's modular pipeline does not guide without one
    settings = {"num_inference_steps": STEPS, "output_type": "latent", "latents": noise(len(prompts))}
    return pipeline(prompt=prompts, output="images", **{**settings, **options})


def test_untrained_and_strength_zero_are_plain_cfg_bit_for_bit(
    modular: tuple[Family, ModularPipeline],
) -> None:
    family, pipeline = modular
    plain = draw(pipeline, ClassifierFreeGuidance(guidance_scale=SCALE))
    untrained = build_hgr(family.backbone, trained=False)
    assert torch.equal(draw(pipeline, safecfg(untrained)), plain)
    assert torch.equal(draw(pipeline, safecfg(family.hgr, strength=0.0)), plain)


def test_equals_the_formula_by_hand(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    rows, passes = [], []
    expected = by_hand(family, [redirected(family)] * STEPS)
    family.backbone.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["encoder_hidden_states"])),
        with_kwargs=True,
    )
    family.hgr.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    found = draw(pipeline, safecfg(family.hgr))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert rows == [3, 3] * STEPS
    assert passes == [3]


def test_start_stop_strength_and_rescale(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    changed, plain = redirected(family, strength=0.4), family.backbone.null(len(PROMPTS))
    expected = by_hand(family, [plain, changed, plain])
    guider = safecfg(family.hgr, strength=0.4, start=0.34, stop=0.6)
    torch.testing.assert_close(draw(pipeline, guider), expected, rtol=1e-5, atol=1e-5)
    rescaled = draw(pipeline, safecfg(family.hgr, guidance_rescale=0.7))
    assert (rescaled - draw(pipeline, safecfg(family.hgr))).abs().max() > 1e-2


def test_one_run_after_another_and_each_prompt_for_itself(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    guider = safecfg(family.hgr)
    first = draw(pipeline, guider)
    draw(pipeline, guider, ["a robot", "a fox", "a knife"])
    assert torch.equal(draw(pipeline, guider), first)
    torch.testing.assert_close(draw(pipeline, guider, PROMPTS[:1]), first[:1], rtol=1e-5, atol=1e-5)


def test_a_negative_prompt_is_composed(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    own = family.backbone.encode_prompts(["a robot"] * len(PROMPTS))
    expected = by_hand(family, [redirected(family, negative=own)] * STEPS)
    negative = "a robot" if family.name == "sd3" else ["a robot"] * len(PROMPTS)
    found = draw(pipeline, safecfg(family.hgr), negative_prompt=negative)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_several_pictures_of_a_prompt(modular: tuple[Family, ModularPipeline]) -> None:
    """Of one: for several, diffusers 0.42 repeats SDXL's pooled embeddings in another order than the rest."""
    family, pipeline = modular
    expected = by_hand(family, [redirected(family, PROMPTS[:1] * 2)] * STEPS, PROMPTS[:1] * 2)
    found = draw(pipeline, safecfg(family.hgr), PROMPTS[:1], num_images_per_prompt=2, latents=noise(2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_pictures_from_pictures(modular: tuple[Family, ModularPipeline], task: str) -> None:
    family, pipeline = modular
    if (family.name, task) == ("sd3", "inpaint"):
        pytest.skip("diffusers has no modular inpainting pipeline for Stable Diffusion 3")
    options = {"num_inference_steps": 5, "strength": 0.7, "output_type": "latent"}
    images = {"image": torch.full((1, 3, 64, 64), 0.5).double()}
    if task == "inpaint":
        images["mask_image"] = torch.ones(1, 1, 64, 64).double()

    def seeded() -> dict[str, object]:
        return {"generator": torch.Generator().manual_seed(0), **options, **images}

    given = GivenNegative(redirected(family, PROMPTS[:1]))
    expected = draw(pipeline, given, PROMPTS[:1], latents=None, **seeded())
    found = draw(pipeline, safecfg(family.hgr), PROMPTS[:1], latents=None, **seeded())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_hgr_of_another_base(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    family.hgr.base_fingerprint = "abc"
    guider = safecfg(family.hgr)
    with pytest.raises(ValueError, match="belongs to the base model abc"):
        draw(pipeline, guider)
    guider.fingerprint = "abc"
    draw(pipeline, guider)
    guider.hgr = build_hgr(family.backbone)
    with pytest.raises(ValueError, match="the one given is abc"):
        draw(pipeline, guider)


def test_no_guidance_no_negative_no_redirector(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    for scale in (1.0, 0.5):
        guider = safecfg(family.hgr)
        guider.guidance_scale = scale
        with pytest.raises(ValueError, match=rf"none at guidance_scale {scale} .* or take another guider"):
            draw(pipeline, guider)
    if family.name == "sd3":
        with pytest.raises(ValueError, match='give negative_prompt="" where you have none'):
            draw(pipeline, safecfg(family.hgr), negative_prompt=None)
    with pytest.raises(RuntimeError, match=r"no redirector: set guider\.hgr"):
        draw(pipeline, SafeCFGGuidance(guidance_scale=SCALE))


def test_a_denoiser_that_is_guided_already(modular: tuple[Family, ModularPipeline]) -> None:
    family, pipeline = modular
    enable_safecfg(family.pipeline, family.hgr)
    with pytest.raises(RuntimeError, match="was called from elsewhere"):
        draw(pipeline, safecfg(family.hgr))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_families_without_a_modular_pipeline(load: Callable[..., Family], name: str) -> None:
    """The guider's own interface in a loop like diffusers' modular ones."""
    family = load(name)
    guider = safecfg(family.hgr)
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    embeds = (family.backbone.encode_prompts(PROMPTS).embeds, family.backbone.null(len(PROMPTS)).embeds)
    latents = noise(len(PROMPTS)) * scheduler.init_noise_sigma
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            guider.set_state(step=step, num_inference_steps=STEPS, timestep=t)
            batches = guider.prepare_inputs({"prompt_embeds": embeds})
            for batch in batches:
                guider.prepare_models(family.pipeline.unet)
                batch.noise_pred = family.pipeline.unet(
                    scheduler.scale_model_input(latents, t), t, encoder_hidden_states=batch.prompt_embeds
                ).sample
                guider.cleanup_models(family.pipeline.unet)
            latents = scheduler.step(guider(batches).pred, t, latents).prev_sample
    expected = by_hand(family, [redirected(family)] * STEPS)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


def test_the_original_formulation_counts_its_scale_from_zero(sd1: Family) -> None:
    embeds = torch.randn(1, 24, 128)
    guider = SafeCFGGuidance(guidance_scale=0.5, use_original_formulation=True)
    guider.hgr = sd1.hgr
    assert len(guider.prepare_inputs({"prompt_embeds": (embeds, embeds)})) == 2
    guider.guidance_scale = 0.0
    with pytest.raises(ValueError, match=r"none at guidance_scale 0\.0"):
        guider.prepare_inputs({"prompt_embeds": (embeds, embeds)})


def test_a_new_guider_keeps_the_redirector(sd1: Family) -> None:
    guider = safecfg(sd1.hgr, strength=0.4, stop=0.5)
    guider.fingerprint = "abc"
    changed = guider.new(guidance_scale=3.0)
    assert (changed.guidance_scale, changed.strength, changed.redirect_stop) == (3.0, 0.4, 0.5)
    assert changed.hgr is sd1.hgr and changed.fingerprint == "abc"


def test_a_saved_guider(sd1: Family, tmp_path: Path) -> None:
    safecfg(sd1.hgr, strength=0.4, start=0.1, stop=0.5).save_pretrained(tmp_path)
    loaded = SafeCFGGuidance.from_pretrained(tmp_path)
    assert (loaded.strength, loaded.redirect_start, loaded.redirect_stop) == (0.4, 0.1, 0.5)
    assert loaded.guidance_scale == SCALE and loaded.hgr is None


def test_pipelines_of_other_families_are_refused(sd1: Family) -> None:
    guider = safecfg(sd1.hgr)
    with pytest.raises(ValueError, match="is for the modular pipelines of SDXL"):
        guider.prepare_inputs_from_block_state(BlockState(), {})
    with pytest.raises(ValueError, match="is for the modular pipelines of SDXL"):
        guider.prepare_inputs({"context": (torch.ones(1), torch.ones(1))})
    with pytest.raises(ValueError, match=r"strength -1: give 0 or more"):
        SafeCFGGuidance(strength=-1)
