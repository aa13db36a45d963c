"""Drift by hand."""

import numpy as np

from safetune.evaluation.drift import picture_change


def test_change_by_hand() -> None:
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    half = black.copy()
    half[1, :2] = 255
    assert picture_change(black, white).tolist() == picture_change(white, black).tolist() == [1, 1]
    assert picture_change(black, half).tolist() == [0, 0.5]
