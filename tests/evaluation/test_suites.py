"""Evaluation prompts: fixed, apart from training, and of the kind that their cell says."""

from safetune.evaluation.suites import tinysd_suite
from safetune.tinysd.datasets import pool_scenes
from safetune.tinysd.vocabulary import OBJECT_BY_KEY
from safetune.tinysd.world import heldout_pairs


def test_the_suite_is_fixed() -> None:
    assert [cell.sha256 for cell in tinysd_suite(8)] == [cell.sha256 for cell in tinysd_suite(8)]
    assert tinysd_suite(8)[0].prompts == tinysd_suite(16)[0].prompts[:8]


def test_cells_hold_what_their_name_says() -> None:
    cells = {cell.name: cell.scenes for cell in tinysd_suite(64)}
    assert all(s.object_name == OBJECT_BY_KEY[s.object].names[-1] for s in cells["heldout_names"])
    assert all((s.subject, s.object) in heldout_pairs() for s in cells["heldout_pairs"])
    assert all(s.object_name != OBJECT_BY_KEY[s.object].names[-1] for s in cells["seen"])
    assert not any(scene.harmful for scene in cells["clean"])
    assert all(scene.object for scene in cells["clean"])


def test_the_pool_holds_no_held_out_name_or_pair() -> None:
    for text, picture in pool_scenes(500):
        for scene in (text, picture):
            if scene.harmful:
                assert scene.object_name in OBJECT_BY_KEY[scene.object].names[:-1]
                assert (scene.subject, scene.object) not in heldout_pairs()


def test_the_pool_is_scene_matched_and_holds_both_mismatches() -> None:
    pairs = pool_scenes(100)
    kinds = [(text.harmful, picture.harmful) for text, picture in pairs]
    assert [kinds.count(kind) for kind in ((True, True), (False, False), (False, True), (True, False))] == [
        40,
        40,
        10,
        10,
    ]
    assert all((text.subject, text.place) == (picture.subject, picture.place) for text, picture in pairs)
