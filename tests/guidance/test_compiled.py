"""torch.compile before and after SafeCFG is enabled; backends that need no compiler."""

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from safetune.guidance import disable_safecfg, enable_safecfg
from tests.guidance.families import Family, as_arguments, draw, redirected


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def wrap(pipeline: DiffusionPipeline) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def in_place(pipeline: DiffusionPipeline) -> None:
    pipeline.unet.compile(backend="eager")


@pytest.mark.parametrize("compile_denoiser", [wrap, in_place])
@pytest.mark.parametrize("order", ["compiled first", "enabled first"])
def test_a_compiled_denoiser_is_redirected(
    sd1: Family, compile_denoiser: Callable[[DiffusionPipeline], None], order: str
) -> None:
    plain, expected = draw(sd1.pipeline), draw(sd1.pipeline, **as_arguments(redirected(sd1)))
    if order == "compiled first":
        compile_denoiser(sd1.pipeline)
        torch.testing.assert_close(draw(sd1.pipeline), plain, rtol=1e-5, atol=1e-5)
    enable_safecfg(sd1.pipeline, sd1.hgr)
    if order == "enabled first":
        torch.testing.assert_close(draw(sd1.pipeline), expected, rtol=1e-5, atol=1e-5)
        compile_denoiser(sd1.pipeline)
    torch.testing.assert_close(draw(sd1.pipeline), expected, rtol=1e-5, atol=1e-5)
    disable_safecfg(sd1.pipeline)
    torch.testing.assert_close(draw(sd1.pipeline), plain, rtol=1e-5, atol=1e-5)


def test_a_transformer_compiled_in_place_by_aot(load: Callable[..., Family]) -> None:
    family = load("sd3")
    expected = draw(family.pipeline, **as_arguments(redirected(family)))
    family.pipeline.transformer.compile(backend="aot_eager", fullgraph=True)
    enable_safecfg(family.pipeline, family.hgr)
    torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)


def test_another_pipeline_of_a_compiled_denoiser_is_refused(sd1: Family) -> None:
    in_place(sd1.pipeline)
    draw(sd1.pipeline)
    enable_safecfg(sd1.pipeline, sd1.hgr)
    other = StableDiffusionPipeline(**sd1.pipeline.components, requires_safety_checker=False)
    with pytest.raises(RuntimeError, match="was called from elsewhere"):
        draw(other)
