"""The rows that train a redirector: which prompts each target leads between, and which are held out."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat
from safetune.files import fingerprint_of
from safetune.prompts import PromptPair, PromptRow, PromptTable, names_age_in_sexual_prompt

logger = logging.getLogger(__name__)

TargetForm = Literal["auto", "rewriting", "concept"]


@dataclass(frozen=True)
class TrainingRow:
    """A prompt and the two prompts of its target, eps(null) + k (eps(positive) - eps(negative))."""

    number: int
    """Row of the source, counted from 1."""
    prompt: str
    positive: str
    negative: str | None
    """None is the null conditioning. A clean row has its prompt as positive and as negative."""
    safe_prompt: str | None
    category: str
    concept: str

    @property
    def harmful(self) -> bool:
        return bool(self.concept)


def rows_of_pairs(pairs: Iterable[PromptPair]) -> list[PromptRow]:
    """Rows of prompt pairs, those of a concept bank for one."""
    return [
        PromptRow(
            number, pair.prompt, pair.safe_prompt, (pair.category,) if pair.category else (), pair.concept
        )
        for number, pair in enumerate(pairs, 1)
    ]


def rows_of_table(table: PromptTable) -> list[PromptRow]:
    """Rows of a prompt file, and each of its safe rewritings once as a clean prompt."""
    rows = {row.safe_prompt: row for row in table.rows if row.safe_prompt == row.prompt}
    for row in table.rows:
        if row.safe_prompt is not None and row.safe_prompt not in rows:
            rows[row.safe_prompt] = PromptRow(row.number, row.safe_prompt, row.safe_prompt)
    return [row for row in table.rows if row.safe_prompt != row.prompt] + list(rows.values())


def rows_of_dataset(dataset: Dataset) -> list[PromptRow]:
    """Rows of a pair set: column text, and safe_prompt, category and concept where it has them.

    Rows that name an age in a sexual prompt are left out, and their number logged.
    """
    columns = [
        list(dataset[name]) if name in dataset.column_names else [""] * len(dataset)
        for name in ("text", "safe_prompt", "category", "concept")
    ]
    rows, refused = [], 0
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        text, safe, category, concept = (cell or "" for cell in cells)
        if names_age_in_sexual_prompt(f"{text}\n{safe}\n{concept}", category):
            refused += 1
            continue
        rows.append(PromptRow(number, text, safe or None, (category,) if category else (), concept))
    if refused:
        logger.warning("%d pairs that name an age in a sexual prompt were left out", refused)
    return rows


def training_rows(rows: Sequence[PromptRow], target: TargetForm = "auto") -> list[TrainingRow]:
    """Both forms of the target (design.md section 1) as one: c against s(c), or a concept h against null.

    A row is clean when its safe rewriting equals its prompt, or when it has no concept, no category and no
    rewriting in a source without any rewritings; where others have one, such a row is left out, since nothing
    tells what it is. "auto" takes the rewriting where there is one. The concept form takes the row's concept,
    or else its first category: one at a time, never a sum.

    Raises ValueError when harmful rows lack what the form needs, and unless both kinds of row are there.
    """
    rewritten = any(row.safe_prompt is not None for row in rows)
    made, lacking, untold = [], [], 0
    for row in rows:
        name = row.concept or row.category
        if row.safe_prompt is None and not name and rewritten:
            untold += 1
        elif row.safe_prompt == row.prompt or (row.safe_prompt is None and not name):
            made.append(TrainingRow(row.number, row.prompt, row.prompt, row.prompt, row.prompt, "", ""))
        elif target == "concept" or (target == "auto" and row.safe_prompt is None):
            if not name:
                lacking.append(row.number)
            made.append(harmful_row(row, name, None))
        else:
            if row.safe_prompt is None:
                lacking.append(row.number)
            made.append(harmful_row(row, row.prompt, row.safe_prompt))
    harmful = sum(row.harmful for row in made)
    if lacking:
        needed = "concept or category" if target == "concept" else "safe_prompt"
        raise ValueError(
            f"target {target}: {len(lacking)} of {harmful} harmful rows have no {needed}, the first is row "
            f"{lacking[0]}; add it, or give --target auto"
        )
    if untold:
        logger.warning(
            "%d rows without safe_prompt, category and concept were left out: a clean prompt's safe_prompt "
            "equals it",
            untold,
        )
    if not harmful or harmful == len(made):
        raise ValueError(
            f"harmful and clean prompts are needed, got {harmful} harmful of {len(made)}. A harmful one has "
            "another safe_prompt, or a category or concept; the safe_prompt of a clean one equals it, or it "
            "has none of the three"
        )
    return made


def harmful_row(row: PromptRow, positive: str, negative: str | None) -> TrainingRow:
    """A harmful row; its category takes a missing concept's place, "harmful" that of a missing category."""
    category = row.category or "harmful"
    concept = row.concept or category
    return TrainingRow(row.number, row.prompt, positive, negative, row.safe_prompt, category, concept)


def picture_prompts(rows: Sequence[TrainingRow]) -> list[str]:
    """The prompt that each row's picture is drawn from: its own, or its safe rewriting.

    SafeCFG leads the picture of a harmful prompt to the rewriting's, so the redirector has to be right there
    too: every second row of each concept that has a rewriting stands beside that one's picture.
    """
    seen: Counter[str] = Counter()
    prompts = []
    for row in rows:
        safe = row.safe_prompt if seen[row.concept] % 2 else None
        prompts.append(safe or row.prompt)
        seen[row.concept] += 1
    return prompts


def hold_out(
    rows: Sequence[TrainingRow], share: float, seed: int, most: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of harmful and of clean prompts to train on, and rows to validate on; no prompt is in both.

    `share` of each kind is held out, 1 to `most` rows, by distinct prompt. The last prompt of a concept
    always trains. Raises ValueError when no prompt of a kind can be spared.
    """
    rng = np.random.default_rng([seed, 0, 0])
    training, validation = [], []
    for kind in (True, False):
        members = [index for index, row in enumerate(rows) if row.harmful == kind]
        held = spare_rows(rows, members, min(most, max(1, round(share * len(members)))), rng)
        if not held:
            raise ValueError(
                f"no {'harmful' if kind else 'clean'} prompt can be spared for validation: give two or more "
                f"different {'prompts of one concept' if kind else 'clean prompts'}"
            )
        training.append(np.setdiff1d(members, held))
        validation += sorted(held)[:most]
    return training[0], training[1], np.array(validation)


def spare_rows(
    rows: Sequence[TrainingRow], members: Sequence[int], wanted: int, rng: np.random.Generator
) -> list[int]:
    """Members of some prompts, all of each prompt's: `wanted` or a few more, fewer where too few remain."""
    by_prompt: dict[str, list[int]] = {}
    for index in members:
        by_prompt.setdefault(rows[index].prompt, []).append(index)
    left = Counter(concept for concept, _ in {(rows[index].concept, rows[index].prompt) for index in members})
    prompts = list(by_prompt)
    held: list[int] = []
    for place in rng.permutation(len(prompts)):
        concepts = {rows[index].concept for index in by_prompt[prompts[place]]}
        if len(held) < wanted and all(left[concept] > 1 for concept in concepts):
            left.subtract(concepts)
            held += by_prompt[prompts[place]]
    return held


def rows_fingerprint(rows: Sequence[TrainingRow]) -> str:
    """What identifies the rows of a bank or a prompt file in run.json."""
    return fingerprint_of(astuple(row) for row in rows)


@dataclass(frozen=True)
class EncodedRows:
    """N rows as places in a table of embeddings that holds each text once; row 0 of the table is null."""

    table: Conditioning
    prompts: Tensor
    positives: Tensor
    negatives: Tensor
    harmful: Tensor
    """(N,) bool; the three above are (N,) integers. All of it is on the CPU."""

    def null(self, device: torch.device) -> Conditioning:
        """The null conditioning, one row."""
        return self.table.select(slice(0, 1)).to(device)

    def batch(
        self, rows: Tensor, device: torch.device
    ) -> tuple[Conditioning, Conditioning, Conditioning, Tensor]:
        """Prompts, positives, negatives and the mask of harmful ones (B,) of B rows."""
        parts = (self.table.select(places[rows]) for places in (self.prompts, self.positives, self.negatives))
        prompts, positives, negatives = (part.to(device) for part in parts)
        return prompts, positives, negatives, self.harmful[rows].to(device)


def encode_rows(backbone: Backbone, rows: Sequence[TrainingRow]) -> EncodedRows:
    """Encode the texts of all rows, each once."""
    columns: list[list[str | None]] = [
        [row.prompt for row in rows],
        [row.positive for row in rows],
        [row.negative for row in rows],
    ]
    texts = dict.fromkeys(text for column in columns for text in column if text is not None)
    places: dict[str | None, int] = {text: place for place, text in enumerate(texts, 1)}
    places[None] = 0
    table = cat([backbone.null(), backbone.encode_prompts(list(texts))]).to(torch.device("cpu"))
    prompts, positives, negatives = (torch.tensor([places[text] for text in column]) for column in columns)
    return EncodedRows(
        table, prompts, positives, negatives, harmful=torch.tensor([row.harmful for row in rows])
    )
