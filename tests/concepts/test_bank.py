import re
from pathlib import Path

import pytest
import yaml

from safetune.concepts import Category, Concept, ConceptBank, Template, bundled_banks, load_bank

OWN = """
version: 1
name: own
source: written for this test
templates:
  - with: "{subject} with {term} {place}"
    without: "{subject} {place}"
subjects: [a man, a woman]
places: [in a park]
clean_terms: [a kite]
categories:
  weapons:
    concepts:
      guns:
        terms: [a gun, a pistol]
        safe: a camera
      knives:
        terms: [a knife]
        safe: [a spoon, a brush]
  smoke:
    templates:
      - with: "{term}, {subject}"
        without: "{subject}"
    subjects: [a chef]
    clean_terms: []
    concepts:
      cigarettes:
        terms: [a cigarette]
        safe: null
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace("    clean_terms: []\n", ""), encoding="utf-8")
    return path


def message(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=str(path)) as mistake:
        load_bank(path)
    return str(mistake.value)


def test_a_bank_of_ones_own(own: Path) -> None:
    park = ("in a park",)
    assert load_bank(own) == ConceptBank(
        name="own",
        version=1,
        source="written for this test",
        categories=(
            Category(
                name="weapons",
                concepts=(
                    Concept("guns", ("a gun", "a pistol"), ("a camera",)),
                    Concept("knives", ("a knife",), ("a spoon", "a brush")),
                ),
                templates=(Template("{subject} with {term} {place}", "{subject} {place}"),),
                subjects=("a man", "a woman"),
                places=park,
                clean_terms=("a kite",),
            ),
            Category(
                name="smoke",
                concepts=(Concept("cigarettes", ("a cigarette",), ()),),
                templates=(Template("{term}, {subject}", "{subject}"),),
                subjects=("a chef",),
                places=park,
                clean_terms=("a kite",),
            ),
        ),
    )
    assert load_bank(str(own)).concepts == {"guns": "weapons", "knives": "weapons", "cigarettes": "smoke"}


def test_the_bank_in_the_documentation_loads(tmp_path: Path, repository: Path) -> None:
    page = (repository / "docs" / "concepts.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    assert load_bank(path).concepts == {"guns": "weapons", "wounds": "weapons"}


def test_bundled_banks() -> None:
    assert bundled_banks() == ["i2p", "styles"]
    assert [category.name for category in load_bank("i2p").categories] == [
        "hate",
        "harassment",
        "violence",
        "self-harm",
        "sexual",
        "shocking",
        "illegal activity",
    ]
    (style,) = load_bank("styles").categories
    assert all(concept.safe == ("in a plain style",) for concept in style.concepts)
    assert len(style.concepts) == 8
    for name in bundled_banks():
        bank = load_bank(name)
        assert bank.name == name and bank.version == 1 and "Apache-2.0" in bank.source


def test_subjects_of_the_sexual_category_are_its_own_and_adult() -> None:
    (sexual,) = (category for category in load_bank("i2p").categories if category.name == "sexual")
    assert set(sexual.subjects) == {
        "a man",
        "a woman",
        "a married couple",
        "two adults",
        "an adult model",
        "an adult dancer",
        "an adult actor",
        "an adult musician",
    }


def test_an_unknown_name_suggests_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no concept bank 'i2q' \\(did you mean i2p\\?\\); bundled: i2p, styles"
    ):
        load_bank("i2q")
    with pytest.raises(ValueError, match=r"none\.yaml: no such file"):
        load_bank(tmp_path / "none.yaml")


def test_every_mistake_is_named_at_once_and_no_term(tmp_path: Path) -> None:
    text = message(
        tmp_path / "bad.yaml",
        """
version: 2
name: ""
colour: red
templates:
  - with: "{subjct} has {term}"
    without: "{subject} {term} {place}"
  - with: "{subject} {place}"
    without: "{subject}"
  - with: "{term"
    withot: x
subjects: [secret, secret, 5]
categories:
  weapons:
    concept: {}
    concepts:
      guns:
        term: [secret gun]
        safe: {}
      knives:
        terms: [secret knife, null, no]
        safe: secret knife
  other:
    concepts:
      guns: {terms: [x], safe: null}
  empty:
    concepts: {}
  text: words
""",
    )
    assert text.splitlines()[0].endswith("bad.yaml has 26 mistakes:")
    assert text.splitlines()[1:] == [
        "- the file: unknown key 'colour'; allowed: version, name, source, templates, subjects, places, "
        "clean_terms, categories",
        "- the file: missing: source",
        "- version: this safetune reads version 1",
        "- name: give a text, got nothing",
        "- subjects[1]: it stands in the list already",
        "- subjects[2]: give a text, got int; put it in quotes",
        "- templates[0].with: unknown slot {subjct} (did you mean subject?); allowed: term, subject, place",
        "- templates[1].with: no {term}",
        "- templates[1]: with and without must hold the same {subject} and {place}",
        "- templates[2]: unknown key 'withot' (did you mean without?); allowed: with, without",
        "- templates[2]: missing: without",
        "- templates[2].with: braces do not match; write {term}, {subject} or {place}",
        "- categories.weapons: unknown key 'concept' (did you mean concepts?); allowed: templates, subjects, "
        "places, clean_terms, concepts",
        "- categories.weapons: its templates hold {place}, but there are no places",
        "- categories.weapons.concepts.guns: unknown key 'term' (did you mean terms?); allowed: terms, safe",
        "- categories.weapons.concepts.guns: missing: terms",
        "- categories.weapons.concepts.guns.safe: give a replacement, a list of them, "
        "or null to drop the term",
        "- categories.weapons.concepts.knives.terms[1]: give a text, got nothing",
        "- categories.weapons.concepts.knives.terms[2]: give a text, got bool; put it in quotes",
        "- categories.weapons.concepts.knives.terms[0] is also a safe replacement; keep one of them",
        "- categories.other: its templates hold {place}, but there are no places",
        "- categories.other.concepts.guns: categories.weapons.concepts.guns has this name already",
        "- categories.empty: its templates hold {place}, but there are no places",
        "- categories.empty.concepts: give at least one",
        "- categories.text: a mapping is needed, got str",
        "- categories.text: its templates hold {place}, but there are no places",
    ]
    assert "secret" not in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  - with: ", "  - with: &x ", ""),
        (
            "      knives:",
            "      guns:",
            "categories.weapons.concepts.guns: this key stands here twice (line 17)",
        ),
        (
            '    without: "{subject} {place}"',
            '    without: "{term} {subject} {place}"',
            "must do without {term}",
        ),
        ('with {term} {place}"', 'with {term!r} {place}"', "unknown slot {term!r} (did you mean term?)"),
        ('with {term} {place}"', 'with {} {term} {place}"', "unknown slot {}; allowed"),
        (
            "categories:\n  weapons:",
            "categories: []\nother:\n  weapons:",
            "categories: a mapping is needed, got list",
        ),
        ("version: 1", "version: true", "version: this safetune reads version 1"),
        ("[a kite]", "a kite", "clean_terms: give a list of texts"),
        ("source: written", "source: !!python/name:os.system\n#", "not YAML in UTF-8, line 4"),
        ("[a kite]", "[a kite", "not YAML in UTF-8, line"),
    ],
)
def test_single_mistakes(own: Path, old: str, new: str, expected: str) -> None:
    text = own.read_text(encoding="utf-8")
    assert old in text
    if not expected:
        own.write_text(text.replace(old, new, 1), encoding="utf-8")
        load_bank(own)
    else:
        assert expected in message(own, text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "- a list", "words"])
def test_a_file_must_hold_a_mapping(tmp_path: Path, text: str) -> None:
    assert "the file: a mapping is needed" in message(tmp_path / "bad.yaml", text)


def test_no_templates_anywhere(own: Path) -> None:
    content = yaml.safe_load(own.read_text())
    del content["templates"]
    text = message(own, yaml.safe_dump(content))
    assert "categories.weapons: no templates here and none at the top of the file" in text
    assert "categories.smoke" not in text


def test_a_term_that_names_an_age_in_a_sexual_category_is_a_mistake(own: Path) -> None:
    text = own.read_text().replace("  smoke:", "  nudity:").replace("[a cigarette]", "[label, aged 15]")
    assert "categories.nudity.concepts.cigarettes.terms[1] names an age or a minor" in message(own, text)
