"""Strength, and the fractions of the steps between which the redirection acts."""

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from safetune.guidance import enable_safecfg
from safetune.guidance.redirection import acts
from tests.guidance.families import PROMPTS, STEPS, Family, draw, draw_by_hand, redirected


def test_strength_multiplies_the_redirection(family: Family) -> None:
    expected = draw_by_hand(family, [redirected(family, strength=0.4)] * STEPS)
    enable_safecfg(family.pipeline, family.hgr, strength=0.4)
    torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("start", "stop", "steps"), [(0.4, 1.0, [1, 2]), (0.0, 0.3, [0])])
def test_only_steps_between_start_and_stop_are_redirected(
    family: Family, start: float, stop: float, steps: list[int]
) -> None:
    plain, changed = family.backbone.null(len(PROMPTS)), redirected(family)
    expected = draw_by_hand(family, [changed if step in steps else plain for step in range(STEPS)])
    enable_safecfg(family.pipeline, family.hgr, start=start, stop=stop)
    torch.testing.assert_close(draw(family.pipeline), expected, rtol=1e-5, atol=1e-5)


def test_fractions_are_of_the_steps_that_img2img_makes(sd1: Family) -> None:
    pipeline, seen, plain = sd1.task("img2img"), [], sd1.backbone.null(1).embeds[0]
    sd1.backbone.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["encoder_hidden_states"][0]), with_kwargs=True
    )
    enable_safecfg(pipeline, sd1.hgr, stop=0.5)
    pipeline(
        PROMPTS[0], image=torch.zeros(1, 3, 64, 64).double(), strength=0.5, num_inference_steps=8
    )  # four of the eight steps
    assert [torch.equal(negative, plain) for negative in seen] == [False, False, True, True]


def test_fractions_with_a_scheduler_of_two_passes_a_step(sd1: Family) -> None:
    scheduler = HeunDiscreteScheduler.from_config(sd1.pipeline.scheduler.config)
    sd1.pipeline.scheduler, changed = scheduler, []
    plain = sd1.backbone.null(1).embeds[0]
    sd1.backbone.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: changed.append(
            not torch.equal(kwargs["encoder_hidden_states"][0], plain)
        ),
        with_kwargs=True,
    )
    enable_safecfg(sd1.pipeline, sd1.hgr, stop=0.6)
    draw(sd1.pipeline)
    assert changed == [True, True, True, False, False]


def test_a_timestep_that_the_scheduler_does_not_have(sd1: Family) -> None:
    enable_safecfg(sd1.pipeline, sd1.hgr, stop=0.5)
    sd1.backbone.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0], args[1] + 0.5), kwargs), with_kwargs=True, prepend=True
    )
    sd1.pipeline.scheduler.set_timesteps(STEPS)
    with pytest.raises(RuntimeError, match=r"is none of the scheduler's, .* leave start 0\.0 and stop 0\.5"):
        draw(sd1.pipeline)


@pytest.mark.parametrize(
    ("start", "stop", "steps", "expected"),
    [
        (0.0, 1.0, 4, [0, 1, 2, 3]),
        (0.25, 0.75, 4, [1, 2]),
        (0.0, 0.55, 100, list(range(55))),
        (0.0, 1e-9, 4, [0]),
        (1 - 1e-9, 1.0, 4, [3]),
        (0.5, 0.5 + 1e-9, 4, [2]),
    ],
)
def test_no_range_is_empty(start: float, stop: float, steps: int, expected: list[int]) -> None:
    assert [step for step in range(steps) if acts(step, steps, start, stop)] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.8, "stop": 0.2}, r"start 0\.8, stop 0\.2: give fractions"),
        ({"start": 0.5, "stop": 0.5}, r"start 0\.5, stop 0\.5: give fractions"),
        ({"stop": 1.5}, r"start 0\.0, stop 1\.5: give fractions"),
        ({"strength": -1.0}, r"strength -1\.0: give 0 or more"),
        ({"strength": float("nan")}, "strength nan: give 0 or more"),
    ],
)
def test_options_that_are_none(sd1: Family, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enable_safecfg(sd1.pipeline, sd1.hgr, **options)
