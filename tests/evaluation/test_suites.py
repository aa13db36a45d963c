"""Evaluation prompts: fixed, apart from training, and of the kind that their cell says."""

from collections import Counter
from pathlib import Path

import pytest

from safetune.evaluation.suites import SUITES, read_suite, tinysd_suite
from safetune.tinysd.captions import parse_caption
from safetune.tinysd.datasets import pool_scenes
from safetune.tinysd.vocabulary import HARMFUL_KEYS, OBJECT_BY_KEY
from safetune.tinysd.world import heldout_pairs


def test_the_suite_is_fixed() -> None:
    cells, again, longer = tinysd_suite(8).cells, tinysd_suite(8).cells, tinysd_suite(16).cells
    assert [cell.sha256 for cell in cells] == [cell.sha256 for cell in again]
    assert [cell.prompts for cell in cells] == [cell.prompts[:8] for cell in longer]


def test_cells_hold_what_their_name_says() -> None:
    suite = tinysd_suite(64)
    cells = {cell.name: cell.scenes for cell in suite.cells}
    assert all(s.object_name == OBJECT_BY_KEY[s.object].names[-1] for s in cells["heldout_names"])
    assert all((s.subject, s.object) in heldout_pairs() for s in cells["heldout_pairs"])
    assert all(s.object_name != OBJECT_BY_KEY[s.object].names[-1] for s in cells["seen"])
    assert not any(scene.harmful for scene in cells["clean"])
    assert all(scene.object for scene in cells["clean"])
    assert suite.cell("seen").categories == tuple(scene.category for scene in cells["seen"])
    assert set(suite.cell("clean").categories) == {""}


def test_paraphrases_are_of_a_form_that_no_training_saw() -> None:
    cell = tinysd_suite(64).cell("paraphrases")
    assert all(parse_caption(prompt) is None for prompt in cell.prompts)
    assert all(scene.object_name in prompt for scene, prompt in zip(cell.scenes, cell.prompts, strict=True))
    assert all(scene.harmful for scene in cell.scenes)


I2P = "prompt,categories,evaluation_seed,evaluation_guidance"


@pytest.mark.parametrize(
    ("name", "header", "row", "seed", "category"),
    [
        ("i2p", I2P, 'a fight,"violence, shocking",7,7.5', 7, "violence"),
        ("ring-a-bell", ",sensitive prompt", "0,a fight", None, ""),
        ("mma-diffusion", "target_prompt,adv_prompt", "calm,a fight", None, ""),
        ("p4d", "prompt,seed,guidance", "a fight,3,7.5", 3, ""),
        ("unlearndiffatk", "prompt,evaluation_seed,evaluation_guidance", "a fight,5,7.5", 5, ""),
        ("coco", "case_number,prompt", "0,a fight", None, ""),
    ],
)  # fmt: skip
def test_suites_read_the_files_of_their_papers(
    tmp_path: Path, name: str, header: str, row: str, seed: int | None, category: str
) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(f"{header}\n{row}\n")
    (cell,) = read_suite(name, file).cells
    assert (cell.prompts, cell.seeds, cell.categories) == (("a fight",), (seed,), (category,))
    assert cell.kind == ("clean" if name == "coco" else "harmful")


def test_a_paired_suite_keeps_the_unsafe_half(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("image,category,prompt\nu_0.png,violence,a fight\ns_0.png,violence,a dance\n")
    assert read_suite("coprov2", file).cells[0].prompts == ("a fight",)
    assert "coprov2" in SUITES


def test_suites_say_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no suite 'i2q' \(did you mean i2p\?\); allowed: tinysd, coco"):
        read_suite("i2q", None)
    with pytest.raises(
        ValueError, match=r"suite 'i2p' needs its prompts: give --prompts-file FILE. I2P, Schramowski"
    ):
        read_suite("i2p", None)
    (tmp_path / "prompts.csv").write_text("text\na fight\n")
    with pytest.raises(ValueError, match="no column 'adv_prompt'"):
        read_suite("mma-diffusion", tmp_path / "prompts.csv")
    other = read_suite("mma-diffusion", tmp_path / "prompts.csv", {"prompt": "text"})
    assert other.cells[0].prompts == ("a fight",)


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


def test_the_pool_holds_each_harmful_object_equally_often() -> None:
    told = Counter(text.object for text, _ in pool_scenes(480) if text.harmful)
    assert set(told) == HARMFUL_KEYS
    assert max(told.values()) - min(told.values()) <= 5  # at most one in each of five parts
