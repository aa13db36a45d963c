"""Before and after pictures with the same seeds: for the report, and as one PNG for a README."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from safetune.reporting.rates import CONDITIONS

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
SIDE = 64
"""Pixels of a picture's side, as TinySD draws it."""


@dataclass(frozen=True)
class GridRow:
    """One prompt drawn under every condition from the same seed."""

    prompt: str
    harmful: bool
    pictures: dict[str, Image.Image]
    """Condition ("base", "safecfg", "lora") -> picture; a missing condition leaves its place empty."""
    flagged: dict[str, bool]
    """Condition -> the judge found a harmful object; needed for every picture, since it decides the blur."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.pictures) - set(CONDITIONS))
        if unknown:
            raise ValueError(f"unknown conditions {unknown} in a grid row; allowed: {', '.join(CONDITIONS)}")
        unjudged = sorted(set(self.pictures) - set(self.flagged))
        if unjudged:
            raise ValueError(
                f"no entry in `flagged` for {unjudged} (prompt {self.prompt!r}): judge every picture"
            )


def order_rows(rows: Sequence[GridRow]) -> list[GridRow]:
    """Harmful prompts first, clean ones after, otherwise as given."""
    return sorted(rows, key=lambda row: not row.harmful)


def picture_uri(picture: Image.Image) -> str:
    """The picture as a PNG data URI, at its own size (the page enlarges it)."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def before_after_picture(rows: Sequence[GridRow], path: Path, scale: int = 3) -> None:
    """Write a labelled grid as PNG (columns base, SafeCFG, LoRA); flagged pictures are blurred.

    Raises ValueError where `rows` is empty or `scale` is below 1.
    """
    if not rows or scale < 1:
        raise ValueError(f"a grid needs a row or more and a scale of 1 or more, got {len(rows)} and {scale}")
    side, gap, text = SIDE * scale, 4 * scale, 5 * scale + 2
    font, small = ImageFont.load_default(text), ImageFont.load_default(text - scale)
    label_width = side + side // 3
    top = text * 2
    size = (label_width + len(CONDITIONS) * (side + gap) + gap, top + len(rows) * (side + gap) + gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(CONDITIONS.values()):
        middle = label_width + column * (side + gap) + side // 2
        draw.text((middle, top // 2), name, "#1d2126", font, anchor="mm")
    for index, row in enumerate(order_rows(rows)):
        upper = top + index * (side + gap)
        words = "\n".join(_wrap(row.prompt, small, label_width - 3 * gap))
        kind = "harmful prompt" if row.harmful else "clean prompt"
        draw.text((gap, upper + gap), kind, "#a84300" if row.harmful else "#5b6470", small)
        draw.multiline_text((gap, upper + gap + text * 1.5), words, "#1d2126", small, spacing=scale)
        for column, condition in enumerate(CONDITIONS):
            left = label_width + column * (side + gap)
            if condition not in row.pictures:
                draw.text((left + side // 2, upper + side // 2), "not drawn", "#5b6470", small, anchor="mm")
                continue
            flagged = row.flagged[condition]
            canvas.paste(_enlarge(row.pictures[condition], side, flagged), (left, upper))
            if flagged:
                _badge(draw, "flagged, blurred", (left + side // 2, upper + side - text), small)
    _write_png(canvas, path)


def _enlarge(picture: Image.Image, side: int, blurred: bool) -> Image.Image:
    """Crisp pixels, or a blur made at the picture's own size so that no detail is left to sharpen."""
    picture = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    if blurred:
        return picture.filter(ImageFilter.GaussianBlur(8)).resize((side, side), Image.Resampling.BICUBIC)
    return picture.resize((side, side), Image.Resampling.NEAREST)


def _badge(draw: ImageDraw.ImageDraw, text: str, middle: tuple[int, int], font: Font) -> None:
    left, upper, right, lower = draw.textbbox(middle, text, font, anchor="mm")
    draw.rounded_rectangle((left - 6, upper - 4, right + 6, lower + 4), 5, fill="#1d2126")
    draw.text(middle, text, "white", font, anchor="mm")


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """The text in lines no wider than `width` pixels; a longer word stands alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _write_png(canvas: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    canvas.save(temporary, format="PNG", optimize=True)
    temporary.replace(path)
