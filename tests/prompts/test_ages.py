"""Only clinical fragments: a category makes them sexual, or a label that stands beside an adult's age."""

import pytest

from safetune.concepts import load_bank
from safetune.prompts.ages import SEXUAL, is_sexual_category, names_age_in_sexual_prompt, read


@pytest.mark.parametrize(
    "fragment",
    [
        "subject, 15 years old",
        "15-year-old subject",
        "15 y.o.",
        "15yo",
        "15 y/o",
        "15YO",
        "15 yrs",
        "15yrs old",
        "15 yr-old",
        "yearold",
        "aged 15",
        "age: 15",
        "Age 9",
        "at the age of nine",
        "nine years of age",
        "nine-year-old",
        "n i n e years old",
        "twelve-yr-0ld",
        "tw3lve yo",
        "fif-teen",
        "f.i.f.t.e.e.n",
        "f i f t e e n",
        "SEVENTEEN",
        "age 40",
        "in her 40s",
        "in his late forties",
        "under 18",
        "under eighteen",
        "u18",
        "< 18",
        "not yet 18",
        "looks like 9",
        "turned 16",
        "sweet 16",
        "16f",
        "16/F",
        "f16",
        "ninth birthday",
        "birthday number 9",
        "born in 2012",
        "5th grade",
        "third grade",
        "grade 7",
        "subject 14",
        "subject 1 4",
        "nineyearold",
        "female, 9",
        "9 female",
        "six females",
        "8 months old",
        "１５ years",
        "١٥ years",
        "15 ans",
        "15 años",
    ],
)
def test_an_age_in_a_sexual_category_drops_the_row(fragment: str) -> None:
    assert names_age_in_sexual_prompt(fragment, "sexual")


@pytest.mark.parametrize(
    "fragment",
    [
        "minor",
        "a minor.",
        "MINORS",
        "child",
        "children",
        "child-like",
        "ch1ld",
        "c-h-i-l-d",
        "c h i l d",
        "ch il d",
        "ch*ld",
        "ch_ld",
        "ch.ld",
        "ᴄʜɪʟᴅ",
        "someschildtag",
        "chi\u200bld",
        "сhild",  # Cyrillic first letter
        "çhïld",
        "ｃｈｉｌｄ",
        "chiiiild",
        "#somechildtag",
        "one_child_",
        "kid",
        "somekidtag",
        "a student",
        "k.i.d",
        "k1d",
        "teen",
        "teenager",
        "te-en",
        "t33n",
        "t**n",
        "preteen",
        "pre-teen",
        "underage",
        "under-age",
        "under age",
        "und3rage",
        "young",
        "girl",
        "1girl",
        "g!rl",
        "girrrl",
        "boys",
        "schoolyard",
        "high school",
        "toddler",
        "infant",
        "baby",
        "adolescent",
        "juvenile",
        "youth",
        "daughter",
        "barely legal",
        "little sister",
        "tender age",
        "niña",
        "👧🏽",
        "子供",
    ],
)
def test_a_word_for_a_minor_in_a_sexual_category_drops_the_row(fragment: str) -> None:
    assert names_age_in_sexual_prompt(fragment, "sexual")


@pytest.mark.parametrize("fragment", ["subject, 15 years old", "child", "school", "in her 40s", ""])
@pytest.mark.parametrize("category", ["", "violence", "illegal activity", "hate, shocking"])
def test_without_anything_sexual_the_row_stays(fragment: str, category: str) -> None:
    assert not names_age_in_sexual_prompt(fragment, category)


@pytest.mark.parametrize(
    "label",
    [
        "nsfw",
        "NSFW",
        "n.s.f.w",
        "nudity",
        "nud1ty",
        "nu-dity",
        "n u d i t y",
        "nud**y",
        "nаked",
        "porn",
        "erotica",
        "sexual",
        "sеxual",
        "see-through clothing",
        "no clothes",
        "topless",
        "lingerie",
        "🔞",
        "ヌード",
    ],
)
def test_the_text_alone_can_be_sexual(label: str) -> None:
    assert names_age_in_sexual_prompt(f"{label}, aged 40")
    assert not names_age_in_sexual_prompt(f"{label}, adult")


@pytest.mark.parametrize("word", ["lolicon", "l0licon", "csam", "C.S.A.M.", "loli"])
def test_words_that_mean_both_drop_the_row_in_any_category(word: str) -> None:
    assert names_age_in_sexual_prompt(word)
    assert names_age_in_sexual_prompt(word, "shocking")


@pytest.mark.parametrize(
    "category",
    [
        "sexual",
        "Sexual",
        "sexual content",
        "violence, sexual",
        "SEX",
        "nudity",
        "nsfw",
        "adult",
        "adult content",
        "porn",
        "explicit",
        "sexually_explicit",
        "erotica",
    ],
)
def test_spellings_of_a_sexual_category(category: str) -> None:
    assert is_sexual_category(category)
    assert names_age_in_sexual_prompt("child", category)


@pytest.mark.parametrize(
    "category", ["", "hate", "harassment", "violence", "self-harm", "shocking", "artistic style"]
)
def test_other_categories_are_not_sexual(category: str) -> None:
    assert not is_sexual_category(category)


@pytest.mark.parametrize(
    "fragment",
    [
        "an adult, 8k, 4 k, 35mm, f/1.8, f 1. 4",
        "a man by a lake, 17th century painting",
        "a woman by a lake --ar 2:3 --v 5",
        "a woman by a lake, 16:9",
        "(a woman:1.2) by a lake",
        "two women by a lake",
        "an adult couple on a sofa",
        "a person with a girlfriend",
        "a person in Essex",
        "a cowboy between two trees, soon",
    ],
)
def test_ordinary_prompts_of_adults_stay_in_a_sexual_category(fragment: str) -> None:
    assert not names_age_in_sexual_prompt(fragment, "sexual")


def test_every_term_of_the_bundled_sexual_category_is_known_to_be_sexual() -> None:
    (sexual,) = (category for category in load_bank("i2p").categories if category.name == "sexual")
    for concept in sexual.concepts:
        for term in concept.terms:
            assert SEXUAL.found_in(read(term)), f"{concept.name} has a term that the word list does not know"


def test_nothing_in_the_bundled_banks_names_an_age() -> None:
    for bank in ("i2p", "styles"):
        for category in load_bank(bank).categories:
            templates = [text for t in category.templates for text in (t.with_term, t.without_term)]
            terms = [text for c in category.concepts for text in (c.name, *c.terms, *c.safe)]
            texts = [*templates, *category.subjects, *category.places, *category.clean_terms, *terms]
            assert not [text for text in texts if names_age_in_sexual_prompt(text, "sexual")]
