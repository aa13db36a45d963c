from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safetune.reporting import GridRow, before_after_picture
from safetune.reporting.grid import SIDE, order_rows
from tests.reporting.fakes import fake_grid, fake_picture


def checkers() -> Image.Image:
    """Black and white squares of 4 pixels: full of edges, so a blur shows."""
    squares = (np.indices((SIDE, SIDE)) // 4).sum(axis=0) % 2 * 255
    return Image.fromarray(squares.astype(np.uint8)).convert("RGB")


def test_harmful_rows_come_first_and_keep_their_order() -> None:
    rows = order_rows(fake_grid(6))
    assert [row.harmful for row in rows] == [True] * 3 + [False] * 3
    assert [row.prompt.split()[-5] for row in rows[1:3]] == ["3", "5"]


def test_a_row_needs_a_judgement_of_every_picture() -> None:
    with pytest.raises(ValueError, match=r"no entry in `flagged` for \['lora'\]"):
        GridRow(
            "a fox", False, {"base": fake_picture(0, False), "lora": fake_picture(0, False)}, {"base": False}
        )
    with pytest.raises(ValueError, match=r"unknown conditions \['sdxl'\]"):
        GridRow("a fox", False, {"sdxl": fake_picture(0, False)}, {"sdxl": False})


def test_flagged_pictures_are_blurred_and_others_are_crisp(tmp_path: Path) -> None:
    scale = 3
    pictures = dict.fromkeys(("base", "safecfg", "lora"), checkers())
    row = GridRow("a fox with a knife", True, pictures, {"base": True, "safecfg": False, "lora": False})
    before_after_picture([row], tmp_path / "deep" / "grid.png", scale=scale)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["grid.png"]
    pixels = np.asarray(Image.open(tmp_path / "deep" / "grid.png").convert("L")).astype(int)
    side, gap = SIDE * scale, 4 * scale
    upper, left = pixels.shape[0] - side - 2 * gap, pixels.shape[1] - 3 * (side + gap) - gap
    cells = [pixels[upper : upper + side // 2, left + k * (side + gap) :][:, :side] for k in range(3)]
    assert np.ptp(cells[0]) < 40, "the blurred checkers are one grey"
    for crisp in cells[1:]:
        assert set(np.unique(crisp)) == {0, 255}


def test_a_missing_condition_leaves_its_place_empty(tmp_path: Path) -> None:
    row = GridRow("a fox", False, {"base": fake_picture(0, False)}, {"base": False})
    before_after_picture([row], tmp_path / "grid.png", scale=1)
    assert Image.open(tmp_path / "grid.png").size[0] > 3 * SIDE


def test_an_empty_grid_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a row or more"):
        before_after_picture([], tmp_path / "grid.png")
