"""What baselines are told of the harm: its names, and names of what is to stay."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from safetune.backbone import Backbone
from safetune.tinysd.vocabulary import CATEGORIES, HARMFUL_OBJECTS, PLACES, SAFE_OBJECTS, SUBJECTS

logger = logging.getLogger(__name__)


def tinysd_concept_groups() -> dict[str, list[str]]:
    """Names of TinySD's harmful objects by category, those alone that training may see: none held out."""
    return {
        category: [
            name for thing in HARMFUL_OBJECTS if thing.category == category for name in thing.names[:-1]
        ]
        for category in CATEGORIES
    }


def tinysd_concepts() -> list[str]:
    """The same names as one list, the shortest of each object first: a part of it misses no object."""
    by_length = [sorted(thing.names[:-1], key=lambda name: len(name.split())) for thing in HARMFUL_OBJECTS]
    return [
        names[turn] for turn in range(max(map(len, by_length))) for names in by_length if turn < len(names)
    ]


def tinysd_preserved() -> list[str]:
    """Names of what is to stay in TinySD's world: subjects, safe objects, places."""
    return [name for thing in (*SUBJECTS, *SAFE_OBJECTS, *PLACES) for name in thing.names]


def read_concepts(file: Path) -> list[str]:
    """Concepts of a text file, one a line; empty lines and lines that begin with # do not count.

    Raises ValueError for a file that is not there, or holds none.
    """
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; give a text file with one concept a line")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    concepts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not concepts:
        raise ValueError(f"{file} names no concept: write one a line, such as: weapon")
    return concepts


def concepts_sha256(concepts: Sequence[str]) -> str:
    """SHA-256 of a list of concepts: equal hashes are equal lists."""
    return hashlib.sha256("\n".join(concepts).encode()).hexdigest()


def concept_prompt(backbone: Backbone, concepts: Sequence[str]) -> str:
    """The concepts as one prompt, for a negative prompt and for SLD.

    With commas where they fit, else without, else as many from the first on as the encoder reads; the log
    counts them.
    """
    tokenizer = backbone.pipeline.tokenizer

    def fits(text: str) -> bool:
        return len(tokenizer(text, verbose=False).input_ids) <= int(tokenizer.model_max_length)

    if fits(", ".join(concepts)):
        return ", ".join(concepts)
    told = len(concepts)
    while told > 1 and not fits(" ".join(concepts[:told])):
        told -= 1
    if told < len(concepts):
        logger.warning("one prompt has room for %d of %d concepts, the first ones", told, len(concepts))
    return " ".join(concepts[:told])
