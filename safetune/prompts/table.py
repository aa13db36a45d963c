"""Prompts in memory: pairs that train, rows of a file, and the counts of what was left out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptPair:
    """A prompt and its safe rewriting; for a clean prompt they are equal, category and concept empty."""

    prompt: str
    safe_prompt: str
    category: str
    concept: str


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a file; None or "" where the file has no such column or an empty cell."""

    number: int
    """Row of the file, counted from 1 without the header; of a CoProV2 pair, the unsafe row."""
    prompt: str
    safe_prompt: str | None = None
    categories: tuple[str, ...] = ()
    concept: str = ""
    seed: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None

    @property
    def category(self) -> str:
        """The first category: one at a time guides, never their sum."""
        return self.categories[0] if self.categories else ""


@dataclass(frozen=True)
class ReadSummary:
    """What became of the rows of a file: numbers of rows, never their text."""

    rows: int
    """Rows in the file, header and nothing else left out."""
    kept: int
    """Prompts kept; in the CoProV2 layout each comes from two rows."""
    empty: tuple[int, ...] = ()
    """Dropped: no prompt."""
    encoding: tuple[int, ...] = ()
    """Dropped: bytes that are not UTF-8."""
    malformed: tuple[int, ...] = ()
    """Dropped: wrong number of cells, no JSON object, or a cell of the wrong type."""
    age_in_sexual: tuple[int, ...] = ()
    """Dropped: names an age or a word for a minor in a sexual prompt."""
    guidance_replaced: tuple[int, ...] = ()
    """Kept, with the layout's default in place of a guidance scale that is not between 0 and 30."""

    def __str__(self) -> str:
        dropped = (
            ("without a prompt", self.empty),
            ("not UTF-8", self.encoding),
            ("malformed", self.malformed),
            ("naming an age in a sexual prompt", self.age_in_sexual),
        )
        parts = [f"rows read: {self.rows}, prompts kept: {self.kept}"]
        parts += [f"dropped {len(rows)} {reason} ({_numbers(rows)})" for reason, rows in dropped if rows]
        if self.guidance_replaced:
            rows = self.guidance_replaced
            parts.append(f"guidance scale replaced in {len(rows)} ({_numbers(rows)})")
        return "; ".join(parts)


@dataclass(frozen=True)
class PromptTable:
    """The rows that were kept, and the summary of the file."""

    rows: tuple[PromptRow, ...]
    summary: ReadSummary

    @property
    def prompts(self) -> list[str]:
        return [row.prompt for row in self.rows]

    def pairs(self) -> list[PromptPair]:
        """Pairs to train on: each harmful prompt with its safe rewriting, each rewriting once as clean.

        A row whose safe_prompt equals its prompt is clean; rows without a safe_prompt are left out. Where a
        harmful row has no concept its category takes the place, or "harmful" where it has neither. Raises
        ValueError when no row has a safe_prompt.
        """
        pairs, clean = [], set()
        for row in self.rows:
            if row.safe_prompt is None:
                continue
            if row.safe_prompt != row.prompt:
                category = row.category or "harmful"
                pairs.append(PromptPair(row.prompt, row.safe_prompt, category, row.concept or category))
            if row.safe_prompt not in clean:
                clean.add(row.safe_prompt)
                pairs.append(PromptPair(row.safe_prompt, row.safe_prompt, "", ""))
        if not pairs:
            raise ValueError(
                f"none of {len(self.rows)} prompts has a safe_prompt: add that column to the file (equal to "
                "the prompt where that is clean), or make pairs with safetune.concepts.bank_prompts"
            )
        return pairs


def _numbers(rows: tuple[int, ...], shown: int = 5) -> str:
    listed = ", ".join(map(str, rows[:shown])) + (", ..." if len(rows) > shown else "")
    return f"row {listed}" if len(rows) == 1 else f"rows {listed}"
