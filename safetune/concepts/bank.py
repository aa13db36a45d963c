"""Concept banks: what they hold, and how they are read from YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safetune.concepts.validation import check_bank
from safetune.prompts.layouts import did_you_mean

BANKS_DIR = Path(__file__).parent


@dataclass(frozen=True)
class Template:
    """A sentence with a slot for the harmful term, and the same sentence without it."""

    with_term: str
    """Holds {term}, and where it has them {subject} and {place}."""
    without_term: str
    """Holds the same slots but {term}: the safe rewriting that drops the term."""


@dataclass(frozen=True)
class Concept:
    """One harmful thing under all its names."""

    name: str
    terms: tuple[str, ...]
    """Names as they occur in prompts, article included."""
    safe: tuple[str, ...]
    """What may take the place of a term in the safe rewriting; none: the term is dropped."""


@dataclass(frozen=True)
class Category:
    """A harm category: its concepts, and the scenes that they appear in."""

    name: str
    concepts: tuple[Concept, ...]
    templates: tuple[Template, ...]
    subjects: tuple[str, ...]
    places: tuple[str, ...]
    clean_terms: tuple[str, ...]
    """Harmless terms that stand in clean prompts where a harmful one would."""


@dataclass(frozen=True)
class ConceptBank:
    """A bank; its categories carry the templates, subjects, places and clean terms that they inherit."""

    name: str
    version: int
    source: str
    """Where the terms come from, and their licence."""
    categories: tuple[Category, ...]

    @property
    def concepts(self) -> dict[str, str]:
        """Category of each concept."""
        return {concept.name: category.name for category in self.categories for concept in category.concepts}


def bundled_banks() -> list[str]:
    """Names of the banks that come with safetune."""
    return sorted(path.stem for path in BANKS_DIR.glob("*.yaml"))


def load_bank(name_or_path: str | Path) -> ConceptBank:
    """A bundled bank by name, or a bank of your own from a .yaml file.

    Raises ValueError that names every mistake of the file at once.
    """
    path = find_bank(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as mistake:
        mark = getattr(mistake, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{path}: not YAML in UTF-8{where}: {getattr(mistake, 'problem', mistake)}"
        ) from None
    check_bank(path, content, node)
    return ConceptBank(
        name=content["name"],
        version=content["version"],
        source=content["source"],
        categories=tuple(
            build_category(str(name), {**content, **category})
            for name, category in content["categories"].items()
        ),
    )


def build_category(name: str, content: Mapping[str, Any]) -> Category:
    """A category of a bank that passed its checks, what it inherits included."""
    return Category(
        name=name,
        concepts=tuple(
            build_concept(str(concept), values) for concept, values in content["concepts"].items()
        ),
        templates=tuple(Template(item["with"], item["without"]) for item in content["templates"]),
        subjects=tuple(content.get("subjects", ())),
        places=tuple(content.get("places", ())),
        clean_terms=tuple(content.get("clean_terms", ())),
    )


def build_concept(name: str, content: Mapping[str, Any]) -> Concept:
    """A concept of a bank that passed its checks."""
    safe = content["safe"]
    replacements = (safe,) if isinstance(safe, str) else tuple(safe or ())
    return Concept(name, tuple(content["terms"]), replacements)


def find_bank(name_or_path: str | Path) -> Path:
    """Path of a bank. ValueError with the known names when there is none."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"concept bank {path}: no such file")
        return path
    names = bundled_banks()
    if str(name_or_path) not in names:
        raise ValueError(
            f"no concept bank {str(name_or_path)!r}{did_you_mean(str(name_or_path), names)}; "
            f"bundled: {', '.join(names)}; for a bank of your own give the path of its .yaml file"
        )
    return BANKS_DIR / f"{name_or_path}.yaml"
