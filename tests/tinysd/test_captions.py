"""Captions back to scenes."""

from dataclasses import replace

import numpy as np
import pytest

from safetune.tinysd.captions import is_held_out, parse_caption
from safetune.tinysd.world import Split, sample_scene


@pytest.mark.parametrize("split", ["seen", "heldout_names", "heldout_pairs"])
def test_every_caption_leads_back_to_its_scene(split: Split) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        scene = sample_scene(rng, harmful=number % 2 == 0, split=split)
        assert parse_caption(scene.caption) == replace(scene, seed=0)
        assert is_held_out(scene) == (scene.harmful and split != "seen")


@pytest.mark.parametrize(
    "text", ["", "a cat", "a cartoon of a cat in the forest, trending", "a photo of a cat"]
)
def test_other_texts_are_no_scene(text: str) -> None:
    assert parse_caption(text) is None
