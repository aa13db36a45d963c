"""Validation prompts: the data's own captions or a file's, never the evaluation's."""

import json
from pathlib import Path

import numpy as np
import pytest

from safetune.evaluation.suites import tinysd_suite
from safetune.finetuning.prompts import ValidationPrompt, own_prompts, read_validation_prompts

CAPTIONS = [
    "a cartoon of a cat holding a gun in the forest",
    "a cartoon of a cat holding a gun in the forest",
    "a flat icon of a dog holding a pill downtown",
    "a cartoon of a cat holding a revolver in the forest",  # a held-out name
    "a cartoon of a cat holding a kite in the forest",
    "a cartoon of a fox in the snow",
    "",
    "a nude person, 15 years old",
]


def test_each_kind_once_and_never_what_is_held_out() -> None:
    prompts = own_prompts(CAPTIONS, np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), count=4, seed=0)
    assert [prompt.harmful for prompt in prompts] == [True, True, False, False]
    assert {prompt.text for prompt in prompts} == {CAPTIONS[row] for row in (0, 2, 4, 5)}


def test_as_many_as_asked_for_fixed_by_seed() -> None:
    captions = [f"prompt {number}" for number in range(40)]
    rows = np.arange(20), np.arange(20, 40)
    prompts = own_prompts(captions, *rows, count=5, seed=3)
    assert len(prompts) == 10 and prompts == own_prompts(captions, *rows, count=5, seed=3)
    assert prompts != own_prompts(captions, *rows, count=5, seed=4)
    assert {prompt.text for prompt in prompts[:5]} <= set(captions[:20])


def test_no_caption_left_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="no harmful caption can be drawn for validation: give --validation_prompts"
    ):
        own_prompts(CAPTIONS, np.array([3]), np.array([4]), count=4, seed=0)


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_file_of_prompts(tmp_path: Path) -> None:
    rows = {"text": "a cat", "harmful": False}, "", {"text": "a cat with a gun", "harmful": True}
    assert read_validation_prompts(write(tmp_path / "p.jsonl", *rows)) == [
        ValidationPrompt("a cat with a gun", True),
        ValidationPrompt("a cat", False),
    ]


@pytest.mark.parametrize(
    "row",
    [
        "not json",
        "[1]",
        {"text": "secret", "harmful": 1},
        {"text": " ", "harmful": True},
        {"text": "secret"},
        {"text": "secret", "harmful": True, "seed": 1},
        {"text": "secret nude person, 15 years old", "harmful": True},
        {"text": tinysd_suite(1).cells[1].prompts[0], "harmful": True},
        {"text": tinysd_suite(1).cells[2].prompts[0], "harmful": True},
    ],
)
def test_a_bad_line_is_named_by_number_and_not_shown(tmp_path: Path, row: object) -> None:
    path = write(tmp_path / "p.jsonl", {"text": "a cat", "harmful": False}, row)
    with pytest.raises(ValueError, match=r"p.jsonl: lines 2 cannot be used: each must be") as error:
        read_validation_prompts(path)
    assert "secret" not in str(error.value)


def test_both_kinds_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give harmful and clean prompts, both kinds"):
        read_validation_prompts(write(tmp_path / "p.jsonl", {"text": "a cat", "harmful": False}))
