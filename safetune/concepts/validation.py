"""Checks of a concept bank's YAML: every mistake is named by its place in the file, never by its text."""

import string
from collections.abc import Sequence
from pathlib import Path

import yaml

from safetune.prompts.ages import names_age_in_sexual_prompt
from safetune.prompts.layouts import did_you_mean

VERSION = 1
SCENE_KEYS = ("templates", "subjects", "places", "clean_terms")
BANK_KEYS = ("version", "name", "source", *SCENE_KEYS, "categories")
SLOTS = ("term", "subject", "place")


def check_bank(path: Path, content: object, node: yaml.Node | None) -> None:
    """ValueError that lists every mistake of a bank; nothing when there is none."""
    mistakes: list[str] = []
    if node is not None:
        check_repeated_keys(node, "", mistakes)
    bank = check_mapping(
        content, "the file", BANK_KEYS, ("version", "name", "source", "categories"), mistakes
    )
    if bank.get("version", VERSION) != VERSION or isinstance(bank.get("version"), bool):
        mistakes.append(f"version: this safetune reads version {VERSION}")
    for key in ("name", "source"):
        if key in bank:
            check_text(bank[key], key, mistakes)
    check_scene(bank, "", mistakes)
    categories = as_mapping(bank.get("categories", {}), "categories", mistakes)
    if "categories" in bank and not categories:
        mistakes.append("categories: give at least one")
    concepts: dict[str, str] = {}
    for name, category in categories.items():
        check_category(str(name), category, bank, concepts, mistakes)
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ValueError(f"concept bank {path} has {count}:\n" + "\n".join(f"- {line}" for line in mistakes))


def check_category(
    name: str, content: object, bank: dict[object, object], concepts: dict[str, str], mistakes: list[str]
) -> None:
    """A category: its own scene parts, those it inherits, and its concepts."""
    where = f"categories.{name}"
    category = check_mapping(content, where, (*SCENE_KEYS, "concepts"), ("concepts",), mistakes)
    check_scene(category, f"{where}.", mistakes)
    scene = {key: category.get(key, bank.get(key)) for key in SCENE_KEYS}
    if not scene["templates"]:
        mistakes.append(f"{where}: no templates here and none at the top of the file")
    used = {slot for template in as_list(scene["templates"]) for slot in slots_of_template(template)}
    for slot, key in (("subject", "subjects"), ("place", "places")):
        if slot in used and not scene[key]:
            mistakes.append(f"{where}: its templates hold {{{slot}}}, but there are no {key}")
    members = as_mapping(category.get("concepts", {}), f"{where}.concepts", mistakes)
    if "concepts" in category and not members:
        mistakes.append(f"{where}.concepts: give at least one")
    for concept_name, concept in members.items():
        place = f"{where}.concepts.{concept_name}"
        if str(concept_name) in concepts:
            mistakes.append(f"{place}: {concepts[str(concept_name)]} has this name already")
        concepts[str(concept_name)] = place
        check_concept(concept, name, place, mistakes)


def check_concept(content: object, category: str, where: str, mistakes: list[str]) -> None:
    """A concept: terms, and the replacement or null. No term of a sexual category may name an age."""
    concept = check_mapping(content, where, ("terms", "safe"), ("terms", "safe"), mistakes)
    terms = check_texts(concept["terms"], f"{where}.terms", mistakes) if "terms" in concept else []
    safe = concept.get("safe")
    replacements = []
    if isinstance(safe, str | list) and safe:
        replacements = check_texts([safe] if isinstance(safe, str) else safe, f"{where}.safe", mistakes)
    elif safe is not None:
        mistakes.append(f"{where}.safe: give a replacement, a list of them, or null to drop the term")
    for position, term in enumerate(terms):
        if names_age_in_sexual_prompt(term, category):
            mistakes.append(
                f"{where}.terms[{position}] names an age or a minor in a sexual category; remove it"
            )
        if term in replacements:
            mistakes.append(f"{where}.terms[{position}] is also a safe replacement; keep one of them")


def check_scene(content: dict[object, object], prefix: str, mistakes: list[str]) -> None:
    """Templates, subjects, places and clean terms of the bank or of a category."""
    for key in ("subjects", "places", "clean_terms"):
        if key in content:
            check_texts(content[key], f"{prefix}{key}", mistakes)
    if "templates" in content:
        templates = content["templates"]
        if not isinstance(templates, list) or not templates:
            mistakes.append(f"{prefix}templates: give a list of mappings with the keys with and without")
        for position, template in enumerate(as_list(templates)):
            check_template(template, f"{prefix}templates[{position}]", mistakes)


def check_template(content: object, where: str, mistakes: list[str]) -> None:
    """Both sentences of a template hold the same known slots; {term} stands in the first alone."""
    before = len(mistakes)
    template = check_mapping(content, where, ("with", "without"), ("with", "without"), mistakes)
    found: dict[str, set[str]] = {}
    for key, sentence in template.items():
        if key in ("with", "without") and check_text(sentence, f"{where}.{key}", mistakes):
            slots = slots_of(str(sentence))
            if slots is None:
                mistakes.append(
                    f"{where}.{key}: braces do not match; write {{term}}, {{subject}} or {{place}}"
                )
                continue
            found[str(key)] = set(slots)
            for slot in sorted(set(slots) - set(SLOTS)):
                hint = did_you_mean(slot, SLOTS)
                mistakes.append(f"{where}.{key}: unknown slot {{{slot}}}{hint}; allowed: {', '.join(SLOTS)}")
    if len(mistakes) > before:
        return
    if "term" not in found["with"]:
        mistakes.append(f"{where}.with: no {{term}}")
    if "term" in found["without"]:
        mistakes.append(f"{where}.without: it must do without {{term}}")
    if found["with"] - {"term"} != found["without"] - {"term"}:
        mistakes.append(f"{where}: with and without must hold the same {{subject}} and {{place}}")


def slots_of(sentence: str) -> list[str] | None:
    """Names in braces, with all that stands in the braces; None when the braces do not match."""
    try:
        parts = list(string.Formatter().parse(sentence))
    except ValueError:
        return None
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parts
        if name is not None
    ]


def slots_of_template(template: object) -> list[str]:
    """Slots of the sentence with the term; none when it is not well formed."""
    sentence = template.get("with") if isinstance(template, dict) else None
    return slots_of(sentence) or [] if isinstance(sentence, str) else []


def check_mapping(
    content: object, where: str, allowed: Sequence[str], required: Sequence[str], mistakes: list[str]
) -> dict[object, object]:
    """The mapping, after naming its unknown and its missing keys; empty when it is none."""
    mapping = as_mapping(content, where, mistakes)
    for key in mapping:
        if key not in allowed:
            hint = did_you_mean(str(key), allowed)
            mistakes.append(f"{where}: unknown key {str(key)!r}{hint}; allowed: {', '.join(allowed)}")
    missing = [key for key in required if key not in mapping]
    if missing and isinstance(content, dict):
        mistakes.append(f"{where}: missing: {', '.join(missing)}")
    return mapping


def check_texts(content: object, where: str, mistakes: list[str]) -> list[str]:
    """A list of texts, none empty and none twice."""
    if not isinstance(content, list) or not content:
        mistakes.append(f"{where}: give a list of texts")
        return []
    for position, text in enumerate(content):
        if check_text(text, f"{where}[{position}]", mistakes) and text in content[:position]:
            mistakes.append(f"{where}[{position}]: it stands in the list already")
    return [text for text in content if isinstance(text, str)]


def check_text(content: object, where: str, mistakes: list[str]) -> bool:
    """True for a text that is not empty."""
    if isinstance(content, str) and content.strip():
        return True
    kind = "nothing" if content is None or content == "" else type(content).__name__
    mistakes.append(f"{where}: give a text, got {kind}" + ("; put it in quotes" if kind != "nothing" else ""))
    return False


def check_repeated_keys(node: yaml.Node, where: str, mistakes: list[str]) -> None:
    """Keys that stand twice in one mapping: YAML would keep the last one in silence."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            path = f"{where}{key.value}"
            if key.value in seen:
                mistakes.append(f"{path}: this key stands here twice (line {key.start_mark.line + 1})")
            seen.add(key.value)
            check_repeated_keys(value, f"{path}.", mistakes)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            check_repeated_keys(item, f"{where[:-1]}[{position}].", mistakes)


def as_mapping(content: object, where: str, mistakes: list[str]) -> dict[object, object]:
    """The mapping itself; empty, and a mistake, when it is none."""
    if isinstance(content, dict):
        return content
    mistakes.append(
        f"{where}: a mapping is needed, got {'nothing' if content is None else type(content).__name__}"
    )
    return {}


def as_list(content: object) -> list[object]:
    """The list itself; empty when it is none."""
    return content if isinstance(content, list) else []
