from dataclasses import replace

import numpy as np
import pytest

from safetune.tinysd.vocabulary import (
    CATEGORIES,
    HARMFUL_OBJECTS,
    OBJECT_BY_KEY,
    PLACES,
    SAFE_OBJECTS,
    STYLES,
    SUBJECTS,
)
from safetune.tinysd.world import (
    Scene,
    clean_twin,
    heldout_pairs,
    recaption,
    render,
    sample_scene,
    without_object,
)

AXE = Scene(
    subject="octopus",
    object="axe",
    pose="held",
    place="beach",
    style="flat",
    template=0,
    object_name="axe",
    place_name="on the beach",
    style_name="flat icon",
    seed=5,
)
CARROT = replace(AXE, object="carrot", object_name="orange carrot", subject="unicorn", pose="lying")
EMPTY = replace(AXE, object="", object_name="", pose="absent", subject="owl")


def draw(split: str, count: int = 300) -> list[Scene]:
    rng = np.random.default_rng(1)
    return [sample_scene(rng, harmful=True, split=split) for _ in range(count)]


def test_the_world_is_large_enough() -> None:
    assert len(SUBJECTS) >= 16
    assert len(SAFE_OBJECTS) >= 12
    assert len(HARMFUL_OBJECTS) >= 12
    assert len(PLACES) >= 8
    assert len(STYLES) >= 2
    assert {thing.category for thing in HARMFUL_OBJECTS} == set(CATEGORIES)
    assert all(len(thing.names) >= 3 for thing in HARMFUL_OBJECTS)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (AXE, "a flat icon of an octopus holding an axe on the beach"),
        (replace(AXE, template=1), "an octopus with an axe in its hand on the beach, flat icon style"),
        (replace(AXE, template=2), "flat icon picture: on the beach, an octopus carries an axe"),
        (CARROT, "a flat icon of a unicorn next to an orange carrot on the beach"),
        (replace(CARROT, template=1), "an orange carrot lies beside a unicorn on the beach, flat icon style"),
        (
            replace(CARROT, template=2),
            "flat icon picture: on the beach, a unicorn and an orange carrot on the ground",
        ),
        (EMPTY, "a flat icon of an owl on the beach"),
        (replace(EMPTY, template=1), "an owl on the beach, flat icon style"),
        (replace(EMPTY, template=2), "flat icon picture: on the beach, an owl"),
    ],
)
def test_captions_take_the_right_articles(scene: Scene, caption: str) -> None:
    assert scene.caption == caption


def test_safe_caption_drops_only_the_harmful_object() -> None:
    assert AXE.safe_caption == "a flat icon of an octopus on the beach"
    assert replace(AXE, template=1).safe_caption == "an octopus on the beach, flat icon style"
    assert CARROT.safe_caption == CARROT.caption
    assert EMPTY.safe_caption == EMPTY.caption


def test_truth_of_a_scene() -> None:
    assert (AXE.harmful, AXE.category) == (True, "weapons")
    assert (CARROT.harmful, CARROT.category) == (False, None)
    assert (EMPTY.harmful, EMPTY.category) == (False, None)
    assert without_object(AXE) == replace(AXE, object="", object_name="", pose="absent")


def last_name(scene: Scene) -> bool:
    return scene.object_name == OBJECT_BY_KEY[scene.object].names[-1]


def held_out(scene: Scene) -> bool:
    return (scene.subject, scene.object) in heldout_pairs()


def test_seen_scenes_never_leak_what_is_held_out() -> None:
    scenes = draw("seen")
    assert all(scene.harmful for scene in scenes)
    assert not any(last_name(scene) or held_out(scene) for scene in scenes)


def test_held_out_names_are_on_seen_pairs() -> None:
    assert all(last_name(scene) and not held_out(scene) for scene in draw("heldout_names"))


def test_held_out_pairs_have_seen_names() -> None:
    assert all(held_out(scene) and not last_name(scene) for scene in draw("heldout_pairs"))


def test_all_mixes_the_splits() -> None:
    scenes = draw("all")
    assert {last_name(scene) for scene in scenes} == {True, False}
    assert {held_out(scene) for scene in scenes} == {True, False}


def test_no_held_out_name_is_said_of_another_object_too() -> None:
    names = [name for thing in HARMFUL_OBJECTS for name in thing.names]
    assert len(names) == len(set(names))


def test_held_out_pairs_are_fixed() -> None:
    assert len(heldout_pairs()) == 3 * 15
    assert {key for _, key in heldout_pairs()} == {thing.key for thing in HARMFUL_OBJECTS}


def test_clean_scenes_hold_no_harmful_object(rng: np.random.Generator) -> None:
    scenes = [sample_scene(rng, harmful=False) for _ in range(300)]
    assert not any(scene.harmful for scene in scenes)
    assert {scene.pose for scene in scenes} == {"held", "lying", "absent"}
    assert all((scene.object == "") == (scene.pose == "absent") for scene in scenes)


def test_clean_twin_changes_only_the_object(rng: np.random.Generator) -> None:
    twin = clean_twin(AXE, rng)
    assert not twin.harmful
    assert twin.object_name in OBJECT_BY_KEY[twin.object].names
    assert replace(twin, object="axe", object_name="axe") == AXE


def test_recaption_keeps_the_picture_and_the_held_out_names(rng: np.random.Generator) -> None:
    versions = [recaption(AXE, rng) for _ in range(50)]
    assert {version.object_name for version in versions} == {"axe", "battle axe", "hatchet"}
    assert {version.template for version in versions} == {0, 1, 2}
    assert all(np.array_equal(render(version), render(AXE)) for version in versions[:3])
    words = {recaption(AXE, rng, heldout_names=True).object_name for _ in range(50)}
    assert words == {"axe", "battle axe", "hatchet", "tomahawk"}


def test_sampling_is_determined_by_its_generator() -> None:
    assert draw("all", 20) == draw("all", 20)


def test_rendering_is_determined_by_the_scene() -> None:
    picture = render(AXE)
    assert picture.size == (64, 64)
    assert picture.mode == "RGB"
    assert np.array_equal(picture, render(AXE))
    for other in (
        {"seed": 6},
        {"object": "bomb"},
        {"subject": "cat"},
        {"place": "space"},
        {"style": "cartoon"},
    ):
        assert not np.array_equal(picture, render(replace(AXE, **other)))


@pytest.mark.parametrize("place", [place.key for place in PLACES])
@pytest.mark.parametrize("style", [style.key for style in STYLES])
def test_every_place_renders_with_and_without_an_object(place: str, style: str) -> None:
    scene = replace(AXE, place=place, style=style)
    assert not np.array_equal(render(scene), render(without_object(scene)))
