from pathlib import Path

import pytest

from safetune.backbone import load_backbone
from safetune.evaluation.baselines.concepts import (
    concept_prompt,
    concepts_sha256,
    read_concepts,
    tinysd_concept_groups,
    tinysd_concepts,
    tinysd_preserved,
)
from safetune.tinysd.vocabulary import CATEGORIES, HARMFUL_OBJECTS, OBJECTS


def test_no_heldout_name_is_told() -> None:
    told = tinysd_concepts()
    assert not {thing.names[-1] for thing in HARMFUL_OBJECTS} & set(told)
    assert sorted(told) == sorted(name for thing in HARMFUL_OBJECTS for name in thing.names[:-1])


def test_the_first_names_cover_every_object_and_groups_hold_the_same_names() -> None:
    told, groups = tinysd_concepts(), tinysd_concept_groups()
    first = told[: len(HARMFUL_OBJECTS)]
    assert all(len(set(thing.names) & set(first)) == 1 for thing in HARMFUL_OBJECTS)
    assert tuple(groups) == CATEGORIES
    assert sorted(name for names in groups.values() for name in names) == sorted(told)
    assert "bomb" in groups["explosives"] and "bomb" not in groups["gore"]


def test_preserved_names_are_safe() -> None:
    harmful = {name for thing in OBJECTS if thing.harmful for name in thing.names}
    assert not harmful & set(tinysd_preserved())
    assert {"cat", "apple", "on the beach"} <= set(tinysd_preserved())


def test_read_concepts_skips_comments_and_repeats(tmp_path: Path) -> None:
    file = tmp_path / "concepts.txt"
    file.write_text("# harm\nweapon\n\n blood \nweapon\n")
    assert read_concepts(file) == ["weapon", "blood"]
    file.write_text("# nothing\n")
    with pytest.raises(ValueError, match="names no concept"):
        read_concepts(file)
    with pytest.raises(ValueError, match="no such file"):
        read_concepts(tmp_path / "absent.txt")


def test_hash_depends_on_words_and_order() -> None:
    assert concepts_sha256(["a", "b"]) == concepts_sha256(["a", "b"])
    assert concepts_sha256(["a", "b"]) != concepts_sha256(["b", "a"]) != concepts_sha256(["ba"])


def test_prompt_names_as_many_concepts_as_the_encoder_reads(
    tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load_backbone(tiny_pipeline)  # 24 tokens, two of them for start and end
    assert concept_prompt(backbone, ["knife", "gun"]) == "knife, gun"
    assert concept_prompt(backbone, ["knife"] * 20) == " ".join(["knife"] * 20)
    assert not caplog.records
    assert concept_prompt(backbone, ["knife"] * 30) == " ".join(["knife"] * 22)
    assert "22 of 30" in caplog.text
    told = concept_prompt(backbone, tinysd_concepts())
    assert all(any(name in told for name in thing.names[:-1]) for thing in HARMFUL_OBJECTS)
