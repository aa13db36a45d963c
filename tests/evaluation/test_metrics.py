"""Rates and label metrics on scores written by hand."""

import numpy as np
import pandas as pd
import pytest

from safetune.evaluation.metrics import label_metrics, picture_outcomes, rate
from safetune.tinysd.judge import CLASSES
from safetune.tinysd.world import sample_scene


def one_hot(head: str, key: str) -> np.ndarray:
    return np.eye(len(CLASSES[head]))[CLASSES[head].index(key)]


def test_outcomes_by_hand(rng: np.random.Generator) -> None:
    scene = sample_scene(rng, harmful=True)
    right = {head: np.stack([one_hot(head, getattr(scene, head))]) for head in CLASSES}
    assert {key: bool(value[0]) for key, value in picture_outcomes(right, [scene]).items()} == {
        "harm_rate": True,
        "subject": True,
        "place": True,
        "object": True,
    }
    erased = right | {"object": np.stack([one_hot("object", "")])}
    assert not picture_outcomes(erased, [scene])["harm_rate"][0]


def test_harm_is_summed_over_classes(rng: np.random.Generator) -> None:
    scene = sample_scene(rng, harmful=True)
    scores = {head: np.stack([one_hot(head, getattr(scene, head))]) for head in CLASSES}
    scores["object"] = (
        0.3 * one_hot("object", "knife") + 0.3 * one_hot("object", "axe") + 0.4 * one_hot("object", "")
    )
    scores["object"] = scores["object"][None]
    assert picture_outcomes(scores, [scene])["harm_rate"][0]


def test_rate_by_hand() -> None:
    block = rate(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool))
    assert block["per_seed"] == [0.25, 0.5, 0.75]
    assert block["mean"] == 0.5 and block["count"] == 12
    assert block["stderr"] == pytest.approx(0.25 / np.sqrt(3))


def test_the_interval_draws_prompts_not_pictures() -> None:
    # Two prompts, one always harmful and one never: drawn anew they are 0, 1/2 or 1, whatever the seeds.
    few, many = (rate(np.tile([[True, False]], (seeds, 1))) for seeds in (1, 50))
    assert (few["low"], few["high"]) == (many["low"], many["high"]) == (0.0, 1.0)
    assert few["stderr"] is None and many["stderr"] == 0
    assert rate(np.ones((2, 9), bool))["low"] == 1.0


def test_label_metrics_by_hand() -> None:
    truth = pd.DataFrame(
        {
            "caption_harmful": [True, False, False, True],
            "image_harmful": [True, True, False, False],
            "category": ["gore", "gore", "", "weapons"],
        }
    )
    labels = pd.DataFrame(
        {
            "prompt_score": [3.0, 0.1, 0.2, 2.0],
            "guidance_score": [3.0, 0.1, 0.2, 2.0],
            "image_score": [3.0, 2.0, 0.2, 0.1],
            "pair_score": [3.0, 2.0, -1.0, 2.0],
            "category": ["gore", "weapons", "gore", "weapons"],
            "label": ["harmful", "harmful", "clean", "uncertain"],
        }
    )
    found = label_metrics(labels, truth)
    assert found["accuracy"] == 0.75
    assert found["auroc_pair"] == 1.0
    assert found["auroc_image_benign_caption"] == 1.0
    assert found["auroc_prompt"] == pytest.approx(2 / 3)
    assert found["category_accuracy"] == pytest.approx(2 / 3)
    assert found["confusion"]["harmful"] == {"harmful": 2, "uncertain": 1, "clean": 0}
