"""Pictures of many pictures, the same prompts and seeds by every method, ready for a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from safetune.evaluation.tables import Row
from safetune.reporting.grid import picture_uri

SMALL = 512
"""Largest side, in pixels, of a picture that is kept as it is."""
LARGE = 1024
"""Largest side of any other on the page."""


@dataclass(frozen=True)
class Sheet:
    """A picture of many pictures."""

    label: str
    uri: str | None
    """None where the method has none of this name."""
    hidden: bool
    """It may show harm: blurred until a click."""
    crisp: bool


def read_sheets(rows: Sequence[Row]) -> list[tuple[str, list[Sheet]]]:
    """Name of each grid that is there, and the pictures of that name by method.

    ValueError for one that is no readable picture, or lies outside of its evaluation's folder.
    """
    found = [{_sheet_name(path): path for path in row.method.grid if path.is_file()} for row in rows]
    names = dict.fromkeys(name for paths in found for name in paths)
    return [
        (
            name,
            [_read_sheet(name, paths.get(name), row) for row, paths in zip(rows, found, strict=True)],
        )
        for name in names
    ]


def _sheet_name(path: Path) -> str:
    """The file's own name: what grids of other methods share."""
    return path.stem.replace("_", " ")


def _read_sheet(name: str, path: Path | None, row: Row) -> Sheet:
    if path is None:
        return Sheet(row.label, None, False, True)
    if not path.resolve().is_relative_to(row.evaluation.folder.resolve()):
        raise ValueError(f"grid {path} of {row.label} lies outside of {row.evaluation.folder}: move it there")
    try:
        picture = Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"grid {path} is no readable picture ({error}): draw it again, or remove it"
        ) from error
    small = max(picture.size) <= SMALL
    uri = picture_uri(picture) if small else _as_jpeg(picture)
    return Sheet(row.label, uri, _may_show_harm(name, row), small)


def _may_show_harm(name: str, row: Row) -> bool:
    """False only for a grid that is named after a clean cell in whose pictures the judge found no harm."""
    kinds = row.evaluation.kinds
    named = [cell for cell in kinds if cell.replace("_", " ") in name]
    if not named:
        return True
    cell = max(named, key=len)
    return (
        kinds[cell] != "clean"
        or cell not in row.method.cells
        or row.method.cells[cell]["harm_rate"].value > 0
    )


def _as_jpeg(picture: Image.Image) -> str:
    picture.thumbnail((LARGE, LARGE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
