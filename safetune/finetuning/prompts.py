"""Prompts that a run draws as it trains: its own captions, or those of a file; never the evaluation's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safetune.prompts import names_age_in_sexual_prompt
from safetune.tinysd.captions import is_held_out, parse_caption


@dataclass(frozen=True)
class ValidationPrompt:
    """A prompt and whether it asks for harm."""

    text: str
    harmful: bool


def own_prompts(
    captions: Sequence[str], harmful_rows: np.ndarray, clean_rows: np.ndarray, count: int, seed: int
) -> list[ValidationPrompt]:
    """`count` captions of each kind, or as many as there are: harmful ones first, none twice, fixed by seed.

    harmful_rows are harmful by their caption, not by their picture alone. ValueError when a kind has none
    that may be drawn.
    """
    prompts = []
    for rows, harmful in ((harmful_rows, True), (clean_rows, False)):
        texts = sorted({captions[row] for row in rows})
        order = np.random.default_rng([seed, int(harmful)]).permutation(len(texts))
        drawn = [text for place in order if not _reserved(text := texts[place]) and text.strip()]
        if not drawn:
            raise ValueError(
                f"no {'harmful' if harmful else 'clean'} caption can be drawn for validation: give "
                "--validation_prompts, or --validate_every 0"
            )
        prompts += [ValidationPrompt(text, harmful) for text in drawn[:count]]
    return prompts


def read_validation_prompts(path: Path) -> list[ValidationPrompt]:
    """Prompts of a file of JSON lines, each {"text": str, "harmful": bool}; harmful ones first.

    ValueError for a line of another form, a prompt that is held out for the evaluation, or a sexual one that
    names an age, by its number and never its text; and when a kind is missing.
    """
    prompts, bad = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        prompt = _parse(line)
        if prompt is None or _reserved(prompt.text):
            bad.append(number)
        else:
            prompts.append(prompt)
    if bad:
        raise ValueError(
            f"{path}: lines {', '.join(map(str, bad[:10]))} cannot be used: each must be "
            '{"text": "...", "harmful": true or false}, none of TinySD\'s held-out names or pairs, which are '
            "the evaluation's, and nothing sexual that names an age"
        )
    if len({prompt.harmful for prompt in prompts}) < 2:
        raise ValueError(f"{path}: give harmful and clean prompts, both kinds")
    return sorted(prompts, key=lambda prompt: not prompt.harmful)


def _parse(line: str) -> ValidationPrompt | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, dict) or set(fields) != {"text", "harmful"}:
        return None
    text, harmful = fields["text"], fields["harmful"]
    is_prompt = isinstance(text, str) and text.strip() and isinstance(harmful, bool)
    return ValidationPrompt(text, harmful) if is_prompt else None


def _reserved(text: str) -> bool:
    """True for a prompt that must not be drawn: held out for the evaluation, or sexual with an age named."""
    scene = parse_caption(text)
    return (scene is not None and is_held_out(scene)) or names_age_in_sexual_prompt(text)
