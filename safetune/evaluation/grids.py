"""Contact sheets of what a method drew: the same prompts and seed in the same place for every method."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from safetune.evaluation.sampling import Job, load_pictures
from safetune.evaluation.suites import Cell

COLUMNS, ROWS = 8, 2
SIDE = 128
"""Largest side of a picture on a sheet, in pixels."""


def write_grids(jobs: Sequence[Job], cells: Sequence[Cell], seed: int) -> list[str]:
    """Write each cell's first pictures of one seed as a sheet; its place in the evaluation's folder."""
    place = jobs[0].path.parent
    for cell in cells:
        contact_sheet(load_pictures(jobs, cell.name, seed), place / f"{cell.name}.png")
    return [f"{place.name}/{cell.name}.png" for cell in cells]


def contact_sheet(pictures: np.ndarray, file: Path) -> None:
    """A PNG of the first COLUMNS x ROWS pictures (N, H, W, 3) uint8, moved into place whole."""
    shown = [Image.fromarray(picture) for picture in pictures[: COLUMNS * ROWS]]
    for picture in shown:
        picture.thumbnail((SIDE, SIDE))
    width, height = shown[0].size
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), "white")
    for place, picture in enumerate(shown):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    temporary = file.with_suffix(".tmp")
    sheet.save(temporary, format="PNG")
    temporary.replace(file)
