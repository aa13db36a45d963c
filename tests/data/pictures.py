"""Pictures that look different."""

import numpy as np
from PIL import Image


def draw_picture(seed: int, size: int = 96) -> Image.Image:
    """Coloured clouds with detail down to a few pixels, other ones for every seed."""
    rng = np.random.default_rng(seed)
    clouds = np.zeros((size, size, 3))
    for cells in (4, 8, 16, 32):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        clouds += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC)) / cells**0.5
    return Image.fromarray((clouds * 255 / clouds.max()).astype(np.uint8))
