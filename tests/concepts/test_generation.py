from dataclasses import replace

import numpy as np
import pytest

from safetune.concepts import Category, Concept, ConceptBank, Template, bank_prompts, load_bank
from safetune.concepts.generation import shuffled
from safetune.prompts import PromptPair, names_age_in_sexual_prompt

TEMPLATES = (Template("{subject} with {term} {place}", "{subject} {place}"),)


def category(name: str = "weapons", **changes: object) -> Category:
    concept = Concept("guns", ("a gun", "a pistol"), ("a camera",))
    base = Category(name, (concept,), TEMPLATES, ("a man", "a woman"), ("in a park", "at home"), ("a kite",))
    return replace(base, **changes)  # type: ignore[arg-type]


def bank(*categories: Category) -> ConceptBank:
    return ConceptBank("own", 1, "written for this test", categories)


def scene(prompt: str) -> tuple[bool, bool]:
    """Subject and place of a prompt of these tests."""
    return "woman" in prompt, "park" in prompt


def test_one_scene_has_one_harmful_pair() -> None:
    guns = category(
        concepts=(Concept("guns", ("a gun",), ("a camera",)),),
        subjects=("a man",),
        places=("in a park",),
        clean_terms=(),
    )
    harmful, clean = bank_prompts(bank(guns), 2)
    assert harmful == PromptPair(
        "a man with a gun in a park", "a man with a camera in a park", "weapons", "guns"
    )
    assert clean.prompt in ("a man in a park", "a man with a camera in a park")
    assert clean == PromptPair(clean.prompt, clean.prompt, "", "")


def test_without_a_replacement_the_term_is_dropped() -> None:
    guns = category(concepts=(Concept("guns", ("a gun",), ()),), clean_terms=())
    for harmful, clean in zip(*[iter(bank_prompts(bank(guns), 8))] * 2, strict=True):
        assert harmful.safe_prompt == harmful.prompt.replace(" with a gun", "")
        assert clean.prompt == harmful.safe_prompt


def test_half_is_clean_and_matches_the_scene_before_it() -> None:
    pairs = bank_prompts(bank(category()), 16, seed=3)
    harmful, clean = pairs[::2], pairs[1::2]
    assert all(pair.category == "weapons" and pair.concept == "guns" for pair in harmful)
    assert all(pair.category == pair.concept == "" and pair.prompt == pair.safe_prompt for pair in clean)
    assert [scene(pair.prompt) for pair in harmful] == [scene(pair.prompt) for pair in clean]
    assert [scene(pair.prompt) for pair in harmful] == [scene(pair.safe_prompt) for pair in harmful]
    assert not any("gun" in pair.prompt or "pistol" in pair.prompt for pair in clean)


def test_no_prompt_comes_twice_while_it_can_be_avoided() -> None:
    # 2 terms x 4 scenes are 8 harmful prompts; 4 scenes x (camera, kite, none) are 12 clean ones.
    for seed in range(5):
        pairs = bank_prompts(bank(category()), 16, seed)
        assert len({pair.prompt for pair in pairs}) == 16
    # Then harmful prompts repeat: each of the 8 comes twice before any comes three times.
    longer = [pair.prompt for pair in bank_prompts(bank(category()), 32, seed=0)[::2]]
    assert {longer.count(prompt) for prompt in longer} == {2}


def test_clean_prompts_repeat_before_harmful_ones_do() -> None:
    lone = category(concepts=(Concept("guns", ("a gun", "a pistol"), ()),), clean_terms=())
    pairs = bank_prompts(bank(lone), 16)
    assert len({pair.prompt for pair in pairs[::2]}) == 8
    assert len({pair.prompt for pair in pairs[1::2]}) == 4


def test_a_small_concept_that_has_run_out_leaves_the_turn_to_others() -> None:
    small = category("small", concepts=(Concept("one", ("a knife",), ("a spoon",)),), subjects=("a chef",))
    pairs = bank_prompts(bank(small, category()), 20)
    names = [pair.category for pair in pairs[::2]]
    assert names == ["small", "weapons", "small", "weapons", *["weapons"] * 6]
    assert len({pair.prompt for pair in pairs}) == 20


def test_categories_and_concepts_take_turns() -> None:
    pairs = bank_prompts(load_bank("i2p"), 70)
    names = [pair.category for pair in pairs[::2]]
    assert names[:7] == [
        "hate",
        "harassment",
        "violence",
        "self-harm",
        "sexual",
        "shocking",
        "illegal activity",
    ]
    assert {names.count(name) for name in names} == {5}
    assert len({pair.concept for pair in pairs[::2]}) == 34  # all of the bank: self-harm has four


def test_the_same_seed_gives_the_same_pairs() -> None:
    i2p = load_bank("i2p")
    assert bank_prompts(i2p, 100, seed=5) == bank_prompts(i2p, 100, seed=5)
    assert bank_prompts(i2p, 100, seed=5) != bank_prompts(i2p, 100, seed=6)


def test_bundled_banks_make_distinct_prompts_without_ages() -> None:
    for name in ("i2p", "styles"):
        pairs = bank_prompts(load_bank(name), 600)
        assert len({pair.prompt for pair in pairs}) == 600
        assert all("{" not in pair.prompt + pair.safe_prompt for pair in pairs)
        assert not any(names_age_in_sexual_prompt(pair.prompt, pair.category) for pair in pairs)


def test_subjects_that_name_an_age_are_dropped_from_sexual_categories_alone_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    label = Concept("label", ("label",), ("words",))
    mixed = {"subjects": ("a person aged 15", "an adult"), "concepts": (label,)}
    pairs = bank_prompts(bank(category("nudity", **mixed)), 6)
    assert not any("15" in pair.prompt + pair.safe_prompt for pair in pairs)
    assert caplog.messages == ["concept bank own: 2 prompts that name an age in a sexual prompt were dropped"]
    others = bank_prompts(bank(category("weapons", **mixed)), 8)
    assert any("15" in pair.prompt for pair in others)


def test_a_bank_that_only_makes_such_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="all it makes are sexual prompts that name an age or a minor"):
        bank_prompts(bank(category("nudity", subjects=("a person aged 15",))), 2)


@pytest.mark.parametrize("count", [-2, 0, 3])
def test_the_count_must_be_even(count: int) -> None:
    with pytest.raises(ValueError, match=f"count {count}: give an even number"):
        bank_prompts(load_bank("styles"), count)


def test_templates_may_do_without_subject_and_place() -> None:
    bare = category(templates=(Template("{term}, photo", "photo"),), subjects=(), places=())
    assert {pair.prompt for pair in bank_prompts(bank(bare), 4)[::2]} == {"a gun, photo", "a pistol, photo"}


def test_shuffled_is_a_permutation(rng: np.random.Generator) -> None:
    order = list(shuffled(50, rng))
    assert sorted(order) == list(range(50)) and order != list(range(50))
    assert list(shuffled(0, rng)) == [] and list(shuffled(1, rng)) == [0]
