"""What a picture is known by: its bytes, and how it looks."""

import hashlib
import io
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Words = NDArray[np.uint64]


def picture_hashes(path: Path, size: int = 16) -> tuple[str, Words] | None:
    """SHA-256 of a file and the perceptual hash (size² / 64,) of its picture; None when it cannot be read.

    The hash holds the signs of the low frequencies (imagehash.phash): scaling, compression and small changes
    of colour keep most of them. Transparent parts count as white.
    """
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            looks = imagehash.phash(on_white(picture), hash_size=size)
    except Exception:  # broken bytes can raise anything: OSError, SyntaxError, EOFError, struct.error, ...
        return None
    return hashlib.sha256(content).hexdigest(), np.packbits(looks.hash).view(np.uint64)


def on_white(picture: Image.Image) -> Image.Image:
    """The picture without transparency, whose hidden colours nobody sees."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
