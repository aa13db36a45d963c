"""The page on which a person reviews one pair after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from safetune.reporting.grid import picture_uri

SIDE = 768
"""Largest side of a picture on the page, in pixels."""
SCORES = {
    "prompt_score": "Prompt score",
    "guidance_score": "Guidance score",
    "image_score": "Image score",
    "pair_score": "Pair score",
}


@dataclass(frozen=True)
class Progress:
    """How far a review is, in pairs; skipped ones count as reviewed."""

    uncertain: int
    of_uncertain: int
    others: int = 0
    of_others: int = 0
    """0 where only the uncertain ones are reviewed."""

    @property
    def text(self) -> str:
        """`12 of 57 uncertain`, and the others where they are reviewed too."""
        text = f"{self.uncertain} of {self.of_uncertain} uncertain"
        return text + (f", {self.others} of {self.of_others} others" if self.of_others else "")

    @property
    def share(self) -> float:
        """Reviewed part in [0, 1]."""
        whole = self.of_uncertain + self.of_others
        return (self.uncertain + self.others) / whole if whole else 1.0


def render_review_page(
    pair: Mapping[str, object] | None,
    row: int,
    picture: Image.Image | None,
    progress: Progress,
    summary: str,
    token: str,
    blur: bool = True,
) -> str:
    """HTML of one pair (a row of the labels) with its picture, or of the end where `pair` is None.

    `row` and `token` come back with the decision, so that it is about the pair that was seen, and from this
    page; `summary` is what was decided so far.
    """
    scores = []
    if pair is not None:
        scores = [(name, f"{pair[key]:.3g}") for key, name in SCORES.items() if pair[key] == pair[key]]
    return _template().render(
        pair=pair,
        row=row,
        picture=None if picture is None else _shrink(picture),
        scores=scores,
        progress=progress,
        summary=summary,
        token=token,
        blur=blur,
    )


def _shrink(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return picture_uri(small)


@cache
def _template() -> Template:
    folder = files("safetune.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("report.css", "review.css", "report.js", "review.js"):
        text = folder.joinpath(name).read_text(encoding="utf-8")
        environment.globals[name.replace(".", "_")] = Markup(text)
    return environment.from_string(folder.joinpath("review.html.j2").read_text(encoding="utf-8"))
