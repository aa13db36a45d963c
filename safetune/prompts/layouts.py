"""Layouts of prompt files: which column holds what, and how rows belong together."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIELDS = ("prompt", "safe_prompt", "category", "concept", "seed", "guidance", "width", "height", "image")
"""What a file can hold; `image` serves to pair rows and nothing else."""


@dataclass(frozen=True)
class Layout:
    """How a kind of prompt file is read."""

    columns: Mapping[str, str]
    """Column of each field. Those that are not required are read where the file has them."""
    required: tuple[str, ...] = ("prompt",)
    many_categories: bool = False
    """The category is a comma-separated list."""
    paired: bool = False
    """Rows are pairs: the i-th `u_*` image of a category is the unsafe prompt of the i-th `s_*` one."""
    default_guidance: float = 7.5
    """Takes the place of a guidance scale that is not between 0 and 30."""


LAYOUTS = {
    "plain": Layout({field: field for field in FIELDS[:-1]}),
    # I2P (Schramowski et al., CVPR 2023)
    "i2p": Layout(
        {
            "prompt": "prompt",
            "category": "categories",
            "seed": "evaluation_seed",
            "guidance": "evaluation_guidance",
            "width": "sd_image_width",
            "height": "sd_image_height",
        },
        required=("prompt", "category", "seed", "guidance"),
        many_categories=True,
    ),
    # CoProV2 (Liu et al., arXiv 2412.10493)
    "coprov2": Layout(
        {"prompt": "prompt", "category": "category", "image": "image"},
        required=("prompt", "image"),
        paired=True,
    ),
}


def resolve_columns(
    path: Path, layout_name: str, given: Mapping[str, str], available: Sequence[str]
) -> dict[str, str]:
    """Column of each field that the file has.

    Raises ValueError that names every mistake: unknown fields, and columns that are required or were given
    but are not there.
    """
    layout = LAYOUTS[layout_name]
    allowed = tuple(layout.columns) if layout.paired else FIELDS[:-1]
    mistakes = [
        f"columns: no field {field!r}{did_you_mean(field, allowed)}; allowed: {', '.join(allowed)}"
        for field in given
        if field not in allowed
    ]
    wanted = {field: column for field, column in {**layout.columns, **given}.items() if field in allowed}
    for field, column in wanted.items():
        if column not in available and (field in layout.required or field in given):
            mistakes.append(
                f"no column {column!r}{did_you_mean(column, shown(available))} for {field}; "
                f'give its name: columns={{"{field}": "..."}}'
            )
    if mistakes:
        raise ValueError(
            f"{path} cannot be read in layout {layout_name!r}:\n"
            + "".join(f"- {mistake}\n" for mistake in mistakes)
            + f"The file's columns: {', '.join(shown(available)) or 'none'}. Layouts: {', '.join(LAYOUTS)}"
        )
    return {field: column for field, column in wanted.items() if column in available}


def shown(names: Sequence[str]) -> list[str]:
    """Names for a message. One of several words may be a prompt of a file without header: not shown."""
    return [
        name
        if re.fullmatch(r"[A-Za-z_][\w.-]{0,39}", name)
        else f"(column {position}, not shown: not one word)"
        for position, name in enumerate(names, start=1)
    ]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Suggestion in brackets, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
