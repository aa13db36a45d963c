import json
from collections import Counter

import numpy as np
from PIL import Image

from safetune.tinysd.captions import is_held_out, parse_caption
from safetune.tinysd.datasets import render_faded, write_hgr_pairs
from safetune.tinysd.vocabulary import HARMFUL_OBJECTS
from safetune.tinysd.world import Scene, render, sample_scene, without_object


def a_harmful_scene() -> Scene:
    return sample_scene(np.random.default_rng(0), harmful=True)


def test_a_faded_picture_lies_between_the_scene_and_the_scene_without_its_object():
    scene = a_harmful_scene()
    whole, bare = (np.array(render(one), float) for one in (scene, without_object(scene)))
    assert np.array_equal(np.array(render_faded(scene, 1.0)), whole)
    assert np.array_equal(np.array(render_faded(scene, 0.0)), bare)
    half = np.array(render_faded(scene, 0.5), float)
    assert np.abs(half - (whole + bare) / 2).max() <= 1


def test_the_redirectors_pairs_hold_every_object_equally_often_beside_each_kind_of_picture(tmp_path):
    count = 2 * 3 * len(HARMFUL_OBJECTS)
    write_hgr_pairs(tmp_path / "pairs", count)
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == count
    harmful, clean = rows[::2], rows[1::2]
    assert all(row["text"] == row["safe_prompt"] and not row["concept"] for row in clean)
    for kind in range(3):
        concepts = Counter(row["concept"] for row in harmful[kind::3])
        assert concepts == {thing.key: 1 for thing in HARMFUL_OBJECTS}
    scenes = [parse_caption(row["text"]) for row in rows]
    assert not any(scene is None or is_held_out(scene) for scene in scenes)
    with Image.open(tmp_path / "pairs" / rows[0]["file_name"]) as picture:
        assert picture.size == (64, 64)
