"""From prompts and pairs to the rows that train: both forms of the target, pictures, and the split."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from safetune.backbone import load_backbone
from safetune.concepts import bank_prompts, load_bank
from safetune.hgr.rows import (
    TrainingRow,
    encode_rows,
    hold_out,
    picture_prompts,
    rows_fingerprint,
    rows_of_dataset,
    rows_of_pairs,
    rows_of_table,
    training_rows,
)
from safetune.prompts import PromptRow, PromptTable, ReadSummary

KNIFE = PromptRow(1, "a cat with a knife", "a cat", ("weapons",), "knife")
FREE = PromptRow(2, "blood everywhere", None, ("gore", "shocking"))
CLEAN = PromptRow(3, "a dog", "a dog")


def targets(rows: Sequence[TrainingRow]) -> list[tuple[str, str | None]]:
    return [(row.positive, row.negative) for row in rows]


def test_auto_takes_the_rewriting_where_there_is_one() -> None:
    rows = training_rows([KNIFE, FREE, CLEAN])
    assert targets(rows) == [("a cat with a knife", "a cat"), ("gore", None), ("a dog", "a dog")]
    assert [row.harmful for row in rows] == [True, True, False]
    assert [(row.category, row.concept) for row in rows] == [("weapons", "knife"), ("gore", "gore"), ("", "")]


def test_the_concept_form_takes_one_name() -> None:
    rows = training_rows([KNIFE, FREE, CLEAN], "concept")
    assert targets(rows)[:2] == [("knife", None), ("gore", None)]
    assert rows[0].safe_prompt == "a cat"


def test_what_a_form_lacks_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"target rewriting: 1 of 2 harmful rows have no safe_prompt.*row 2;"
    ):
        training_rows([KNIFE, FREE, CLEAN], "rewriting")
    unnamed = PromptRow(7, "a cat with a knife", "a cat")
    with pytest.raises(ValueError, match=r"target concept: 1 of 1 harmful rows have no concept or category"):
        training_rows([unnamed, CLEAN], "concept")
    assert training_rows([unnamed, CLEAN])[0].concept == "harmful"


def test_both_kinds_are_needed() -> None:
    for rows in ([KNIFE, FREE], [CLEAN]):
        with pytest.raises(ValueError, match="harmful and clean prompts are needed, got"):
            training_rows(rows)


def test_rows_that_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    silent = PromptRow(4, "a fox")
    assert [row.harmful for row in training_rows([FREE, silent])] == [True, False]
    with caplog.at_level(logging.WARNING):
        rows = training_rows([KNIFE, CLEAN, silent])
    assert [row.number for row in rows] == [1, 3]
    assert "1 rows without safe_prompt, category and concept were left out" in caplog.text


def test_a_table_gives_each_rewriting_once_as_clean() -> None:
    again = PromptRow(4, "a cat with a gun", "a cat", ("weapons",), "gun")
    table = PromptTable((KNIFE, again, FREE, CLEAN), ReadSummary(4, 4))
    rows = training_rows(rows_of_table(table))
    assert [row.prompt for row in rows if not row.harmful] == ["a dog", "a cat"]
    assert sum(row.harmful for row in rows) == 3


def test_a_data_set_with_and_without_optional_columns() -> None:
    full = Dataset.from_dict(
        {
            "text": ["a cat with a knife", "a cat", "blood"],
            "safe_prompt": ["a cat", "a cat", None],
            "category": ["weapons", "", "gore"],
            "concept": ["knife", "", None],
        }
    )
    rows = training_rows(rows_of_dataset(full))
    assert targets(rows) == [("a cat with a knife", "a cat"), ("a cat", "a cat"), ("gore", None)]
    bare = Dataset.from_dict({"text": ["blood", "a cat"], "category": ["gore", ""]})
    assert targets(training_rows(rows_of_dataset(bare))) == [("gore", None), ("a cat", "a cat")]


def test_ages_in_sexual_prompts_are_left_out_of_pair_sets_too(caplog: pytest.LogCaptureFixture) -> None:
    data = Dataset.from_dict({"text": ["a person aged 16", "a cat"], "category": ["sexual", ""]})
    with caplog.at_level(logging.WARNING):
        assert [row.number for row in rows_of_dataset(data)] == [2]
    assert "1 pairs that name an age" in caplog.text and "16" not in caplog.text


def test_every_second_picture_of_a_concept_is_the_rewritings() -> None:
    harmful = [
        TrainingRow(n, f"{name} {n}", "p", "n", f"safe {n}", "c", name)
        for n, name in enumerate(["knife", "gun", "knife", "gun", "knife"])
    ]
    free = [TrainingRow(9, "free", "h", None, None, "c", "free")] * 2
    clean = [TrainingRow(9, "a dog", "a dog", "a dog", "a dog", "", "")] * 2
    assert picture_prompts([*harmful, *free, *clean]) == [
        *("knife 0", "gun 1", "safe 2", "safe 3", "knife 4"),
        *("free", "free", "a dog", "a dog"),
    ]


def test_a_bank_makes_rows_of_every_concept() -> None:
    bank = load_bank("i2p")
    rows = training_rows(rows_of_pairs(bank_prompts(bank, 140)))
    assert {row.concept for row in rows if row.harmful} == set(bank.concepts)
    drawn = [row.safe_prompt for row in rows if row.harmful]
    own = [prompt not in drawn for prompt in picture_prompts(rows)][::2]
    assert 0.4 < np.mean(own) < 0.6


def some_rows(harmful: int = 60, clean: int = 60, concepts: int = 3) -> list[TrainingRow]:
    return [
        *(TrainingRow(n, f"bad {n}", "p", "n", "s", "c", f"k{n % concepts}") for n in range(harmful)),
        *(TrainingRow(n, f"good {n // 2}", "p", "p", "p", "", "") for n in range(clean)),
    ]


def test_held_out_prompts_train_nothing() -> None:
    rows = some_rows()
    harmful, clean, held = hold_out(rows, 0.1, seed=0)
    assert sum(rows[index].harmful for index in held) == 6
    assert sum(not rows[index].harmful for index in held) == 6
    assert all(rows[index].harmful for index in harmful) and not any(rows[index].harmful for index in clean)
    trained = {rows[index].prompt for index in (*harmful, *clean)}
    assert not trained & {rows[index].prompt for index in held}
    assert len(harmful) + len(clean) + len(held) == len(rows)
    assert all(
        np.array_equal(a, b) for a, b in zip(hold_out(rows, 0.1, 0), (harmful, clean, held), strict=True)
    )
    assert not np.array_equal(hold_out(rows, 0.1, 1)[2], held)


@pytest.mark.parametrize(("share", "count", "expected"), [(0.01, 60, [1, 2]), (0.5, 200, [32, 32])])
def test_one_prompt_to_32_rows_of_each_kind(share: float, count: int, expected: list[int]) -> None:
    rows = some_rows(count, count)
    held = hold_out(rows, share, seed=0)[2]
    assert [sum(rows[index].harmful == kind for index in held) for kind in (True, False)] == expected


def test_the_last_prompt_of_a_concept_trains() -> None:
    rows = some_rows(harmful=6, concepts=5)
    harmful, _, held = hold_out(rows, 0.5, seed=0)
    assert [rows[index].concept for index in held if rows[index].harmful] == ["k0"]
    assert {rows[index].concept for index in harmful} == {f"k{n}" for n in range(5)}
    with pytest.raises(ValueError, match="no harmful prompt can be spared for validation: give two or more"):
        hold_out(some_rows(harmful=5, concepts=5), 0.5, seed=0)
    with pytest.raises(ValueError, match="no clean prompt can be spared"):
        hold_out(some_rows(clean=2), 0.5, seed=0)


def test_each_text_is_encoded_once(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    rows = training_rows([KNIFE, FREE, CLEAN, PromptRow(4, "a cat", "a cat")])
    encoded = encode_rows(backbone, rows)
    assert len(encoded.table) == 1 + len({"a cat with a knife", "a cat", "blood everywhere", "gore", "a dog"})
    prompts, positives, negatives, harmful = encoded.batch(torch.tensor([1, 0]), torch.device("cpu"))
    assert harmful.tolist() == [True, True]
    expected = backbone.encode_prompts(["blood everywhere", "a cat with a knife", "gore", "a cat"])
    torch.testing.assert_close(prompts.embeds, expected.embeds[:2])
    torch.testing.assert_close(positives.embeds, expected.embeds[[2, 1]])
    torch.testing.assert_close(negatives.pooled[1], expected.pooled[3])
    null = backbone.null()
    assert torch.equal(negatives.embeds[:1], null.embeds) and torch.equal(negatives.pooled[:1], null.pooled)
    assert torch.equal(encoded.null(torch.device("cpu")).embeds, null.embeds)


def test_fingerprints_tell_rows_apart() -> None:
    first, second = training_rows([KNIFE, CLEAN]), training_rows([KNIFE, CLEAN], "concept")
    assert rows_fingerprint(first) == rows_fingerprint(list(first)) != rows_fingerprint(second)
