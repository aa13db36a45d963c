"""Prompt pairs from a concept bank: harmful, rewritten, and clean ones of the same scenes."""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from safetune.concepts.bank import Category, Concept, ConceptBank, Template
from safetune.prompts.ages import names_age_in_sexual_prompt
from safetune.prompts.table import PromptPair

logger = logging.getLogger(__name__)

WITHOUT_TERM_SHARE = 0.25
"""Share of clean prompts that have no term at all; the others have a harmless one in its place."""

# What a pass over all scenes demands; the next one starts when no scene is left that meets it.
Demand = Literal["all new", "harmful new", "any"]
DEMANDS: tuple[Demand, ...] = ("all new", "harmful new", "any")


@dataclass(frozen=True)
class Scene:
    """A filled-in template but for its term."""

    template: Template
    subject: str
    place: str

    def with_term(self, term: str) -> str:
        return self.template.with_term.format(term=term, subject=self.subject, place=self.place)

    def without_term(self) -> str:
        return self.template.without_term.format(subject=self.subject, place=self.place)


def bank_prompts(bank: ConceptBank, count: int, seed: int = 0) -> list[PromptPair]:
    """`count` pairs, harmful and clean in turn; a function of bank, count and seed alone.

    Categories take turns, and so do the concepts of each. A clean prompt has the template, subject and place
    of the harmful one before it, with a harmless term or none. No prompt comes twice while the bank has
    another one. Prompts that name an age in a sexual category are dropped, and their number logged. Raises
    ValueError for an odd count, and when such prompts are all that the bank makes.
    """
    if count < 2 or count % 2:
        raise ValueError(f"count {count}: give an even number, 2 or more; half of the prompts are clean")
    rng = np.random.default_rng(seed)
    pairs: list[PromptPair] = []
    used: set[str] = set()
    refused: set[str] = set()
    demands = iter(DEMANDS)
    demand: Demand = next(demands)
    while len(pairs) < count:
        before = len(pairs)
        for harmful, clean in walk_bank(bank, rng, demand, used, refused):
            pairs += [harmful, clean]
            used |= {harmful.prompt, clean.prompt}
            if len(pairs) == count:
                break
        if demand == "any" and len(pairs) == before:
            raise ValueError(
                f"concept bank {bank.name}: all it makes are sexual prompts that name an age or a minor; "
                "give subjects, places and templates that do not"
            )
        demand = next(demands, "any")
    if refused:
        logger.warning(
            "concept bank %s: %d prompts that name an age in a sexual prompt were dropped",
            bank.name,
            len(refused),
        )
    return pairs


def walk_bank(
    bank: ConceptBank, rng: np.random.Generator, demand: Demand, used: set[str], refused: set[str]
) -> Iterator[tuple[PromptPair, PromptPair]]:
    """Pairs of all concepts in turn, categories before concepts, until every concept has run out."""
    categories = deque(
        deque(walk_concept(category, concept, rng, demand, used, refused) for concept in category.concepts)
        for category in bank.categories
    )
    while categories:
        concepts = categories.popleft()
        while concepts:
            concept = concepts.popleft()
            pair = next(concept, None)
            if pair is not None:
                concepts.append(concept)
                yield pair
                break
        if concepts:
            categories.append(concepts)


def walk_concept(
    category: Category,
    concept: Concept,
    rng: np.random.Generator,
    demand: Demand,
    used: set[str],
    refused: set[str],
) -> Iterator[tuple[PromptPair, PromptPair]]:
    """Pairs of one concept, each term in each scene once, in random order."""
    subjects, places = category.subjects or ("",), category.places or ("",)
    shape = (len(concept.terms), len(category.templates), len(subjects), len(places))
    for index in shuffled(int(np.prod(shape)), rng):
        term, template, subject, place = (int(axis) for axis in np.unravel_index(index, shape))
        scene = Scene(category.templates[template], subjects[subject], places[place])
        prompt = scene.with_term(concept.terms[term])
        safe = scene.with_term(str(rng.choice(concept.safe))) if concept.safe else scene.without_term()
        if demand != "any" and prompt in used:
            continue
        if names_age_in_sexual_prompt(f"{prompt}\n{safe}", category.name):
            refused.add(prompt)
            continue
        clean = choose_clean(scene, category, concept, rng, used)
        if demand == "all new" and clean in used:
            continue
        if names_age_in_sexual_prompt(clean, category.name):
            refused.add(clean)
            continue
        yield (
            PromptPair(prompt, safe, category.name, concept.name),
            PromptPair(clean, clean, "", ""),
        )


def choose_clean(
    scene: Scene, category: Category, concept: Concept, rng: np.random.Generator, used: set[str]
) -> str:
    """A clean prompt of the scene, one not used yet if there is one: with a harmless term, or with none."""
    terms = list(dict.fromkeys((*concept.safe, *category.clean_terms)))
    options = [scene.with_term(terms[position]) for position in rng.permutation(len(terms))]
    position = 0 if rng.random() < WITHOUT_TERM_SHARE else len(options)
    options.insert(position, scene.without_term())
    return next((option for option in options if option not in used), options[0])


def shuffled(size: int, rng: np.random.Generator) -> Iterator[int]:
    """0 to size − 1 in random order, drawn one by one (Fisher and Yates): a huge bank costs no memory."""
    moved: dict[int, int] = {}
    for position in range(size):
        other = int(rng.integers(position, size))
        yield moved.get(other, other)
        moved[other] = moved.get(position, position)
