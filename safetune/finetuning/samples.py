"""Pictures of a validation beside the base's, as one PNG."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

SIDE = 96
"""Pixels of a cell's side."""
BLURRED_SIDE = 64
"""Pixels that a picture is reduced to before it is blurred, so that no detail is left to sharpen."""


def write_grid(rows: Sequence[tuple[str, Tensor, Sequence[bool]]], path: Path) -> None:
    """Write rows of (label, pictures (N, 3, H, W) uint8, which to blur); prompts are not written on it."""
    gap, label = 4, 130
    width = label + max(len(pictures) for _, pictures, _ in rows) * (SIDE + gap) + gap
    canvas = Image.new("RGB", (width, len(rows) * (SIDE + gap) + gap), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (name, pictures, hidden) in enumerate(rows):
        top = gap + number * (SIDE + gap)
        draw.text((gap, top + SIDE // 2), name, "#1d2126", font, anchor="lm")
        for column, (picture, blurred) in enumerate(zip(pictures, hidden, strict=True)):
            canvas.paste(_cell(picture, blurred), (label + column * (SIDE + gap), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    canvas.save(temporary, format="PNG")
    temporary.replace(path)


def _cell(picture: Tensor, blurred: bool) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
    if blurred:
        small = image.resize((BLURRED_SIDE, BLURRED_SIDE), Image.Resampling.BOX)
        return small.filter(ImageFilter.GaussianBlur(8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
