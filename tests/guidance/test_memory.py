"""A redirection is computed once for its prompts and never serves others."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from safetune.conditioning import Conditioning
from safetune.guidance import disable_safecfg, enable_safecfg
from safetune.guidance.redirection import Memory
from tests.guidance.families import PROMPTS, STEPS, Family, draw, draw_by_hand, redirected


class Counted:
    """A redirection that is a count of how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Conditioning:
        self.calls += 1
        return Conditioning(torch.tensor([self.calls]))


def test_the_same_tensors_are_recalled() -> None:
    memory, make, given = Memory(), Counted(), (torch.ones(2, 3), None)
    assert [memory.recall(given, make).embeds.item() for _ in range(3)] == [1, 1, 1]


def test_a_write_in_place_is_noticed() -> None:
    memory, make, embeds, pooled = Memory(), Counted(), torch.ones(2, 3), torch.ones(2)
    memory.recall((embeds, pooled), make)
    embeds[0] = 2
    assert memory.recall((embeds, pooled), make).embeds.item() == 2
    pooled.mul_(2)
    assert memory.recall((embeds, pooled), make).embeds.item() == 3
    embeds[:1].zero_()  # through a view
    assert memory.recall((embeds, pooled), make).embeds.item() == 4


def test_equal_tensors_and_freed_ones_are_not_confused() -> None:
    memory, make = Memory(), Counted()
    for call in range(50):  # each is freed before the next is made, unless the memory holds it
        assert memory.recall((torch.ones(2, 3),), make).embeds.item() == call + 1


def test_more_or_fewer_tensors_are_other_ones() -> None:
    memory, make, embeds = Memory(), Counted(), torch.ones(2, 3)
    memory.recall((embeds,), make)
    assert memory.recall((embeds, embeds), make).embeds.item() == 2


def test_inference_mode_counts_no_writes_so_nothing_is_recalled() -> None:
    with torch.inference_mode():
        memory, make, embeds = Memory(), Counted(), torch.ones(2, 3)
        memory.recall((embeds,), make)
        embeds.zero_()
        assert memory.recall((embeds,), make).embeds.item() == 2


def test_one_run_after_another_with_other_prompts(family: Family) -> None:
    other = ["a fox", "a knife", "a robot in the city"]
    expected = [draw_by_hand(family, [redirected(family, rows)] * STEPS, rows) for rows in (PROMPTS, other)]
    enable_safecfg(family.pipeline, family.hgr)
    for prompts, wanted in zip((PROMPTS, other, PROMPTS), (*expected, expected[0]), strict=True):
        torch.testing.assert_close(draw(family.pipeline, prompts), wanted, rtol=1e-5, atol=1e-5)


def test_the_same_tensors_with_a_redirector_that_was_trained_on(sd1: Family) -> None:
    given = {
        "prompt_embeds": sd1.backbone.encode_prompts(PROMPTS).embeds,
        "negative_prompt_embeds": sd1.backbone.null(3).embeds,
    }

    def sample() -> Tensor:
        options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}
        return sd1.pipeline(generator=torch.Generator().manual_seed(0), **options, **given).images

    plain = sample()
    enable_safecfg(sd1.pipeline, sd1.hgr)
    assert not torch.equal(sample(), plain)
    sd1.hgr.project_out.weight.data.zero_()
    assert torch.equal(sample(), plain)


def test_embeddings_that_a_callback_writes_to(sd1: Family) -> None:
    """Written in place and replaced: both are redirected as they then are."""
    other = sd1.backbone.encode_prompts(["a robot", "a fox", "a knife"]).embeds
    null = sd1.backbone.null(3).embeds

    def replace(pipeline: DiffusionPipeline, step: int, t: int, tensors: dict[str, Tensor]) -> dict:
        return {"prompt_embeds": torch.cat([null, other])}

    def write(pipeline: DiffusionPipeline, step: int, t: int, tensors: dict[str, Tensor]) -> dict:
        tensors["prompt_embeds"].copy_(torch.cat([null, other]))
        return {}

    enable_safecfg(sd1.pipeline, sd1.hgr)
    replaced, written = (
        draw(sd1.pipeline, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        for change in (replace, write)
    )
    assert torch.equal(replaced, written)
    assert not torch.equal(replaced, draw(sd1.pipeline))
    disable_safecfg(sd1.pipeline)


def test_inference_mode(sd1: Family) -> None:
    enable_safecfg(sd1.pipeline, sd1.hgr)
    expected = draw(sd1.pipeline)
    with torch.inference_mode():
        assert torch.equal(draw(sd1.pipeline), expected)
