"""Buckets: sizes of one area and many aspect ratios, as SDXL was trained (arXiv 2307.01952, section 2.3)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(resolution: int, multiple: int = 64) -> list[Size]:
    """Sizes from 1:4 to 4:1 with multiples of `multiple` a side and at most resolution squared pixels."""
    smallest = max(multiple, math.ceil(resolution / 2 / multiple) * multiple)
    sides = range(smallest, resolution + 1, multiple)
    flat = [(side, resolution**2 // side // multiple * multiple) for side in sides]
    return sorted({*flat, *((width, height) for height, width in flat)})


def nearest_size(picture: Image, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to the picture's."""
    ratio = math.log(picture.height / picture.width)
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - ratio))


def fit(picture: Image, sizes: Sequence[Size]) -> tuple[Tensor, Tensor]:
    """A picture (3, h, w) in [-1, 1] of the nearest size, and its time ids (6,).

    It is scaled to cover that size, and what juts out is cut off on both sides alike. The time ids are
    SDXL's: original height and width, top and left of the cut in the scaled picture, height and width.
    """
    height, width = nearest_size(picture, sizes)
    scale = min(picture.height / height, picture.width / width)
    top, left = (picture.height - scale * height) / 2, (picture.width - scale * width) / 2
    ids = torch.tensor(
        [picture.height, picture.width, round(top / scale), round(left / scale), height, width]
    )
    if picture.size != (width, height):
        picture = picture.resize((width, height), box=(left, top, left + scale * width, top + scale * height))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1, ids
