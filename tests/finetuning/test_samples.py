"""The grid of a validation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from safetune.finetuning.samples import SIDE, write_grid


def test_what_is_flagged_is_blurred_before_it_is_enlarged(tmp_path: Path) -> None:
    """Stripes of 2 pixels, which a blur of 8 pixels at the picture's own size turns to grey."""
    stripes = (torch.arange(64) % 4 < 2).to(torch.uint8).mul(255).view(1, 1, 1, 64).expand(2, 3, 64, 64)
    write_grid(
        [("harmful, base", stripes, [True, False]), ("clean, base", stripes[:1], [False])],
        tmp_path / "a" / "grid.png",
    )
    grid = np.asarray(Image.open(tmp_path / "a" / "grid.png").convert("L")).astype(float)
    height, width = grid.shape
    assert height == 2 * (SIDE + 4) + 4 and width == 130 + 2 * (SIDE + 4) + 4

    def spread(row: int, column: int) -> float:
        top, left = 4 + row * (SIDE + 4), 130 + column * (SIDE + 4)
        return float(grid[top + 10 : top + SIDE - 10, left + 10 : left + SIDE - 10].std())

    assert spread(0, 0) < 12 and spread(0, 1) > 60 and spread(1, 0) > 60
    assert spread(1, 1) == 0  # nothing there
