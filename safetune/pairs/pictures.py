"""Decoding of pictures that nobody has checked: sizes before pixels, one reason for each damage."""

import logging
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.Image import Image as Picture

from safetune.pairs.records import Limits

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are opened; its other decoders are seldom used and less tested."""

CONVERTED = {
    "1": "greyscale converted to RGB",
    "L": "greyscale converted to RGB",
    "P": "palette converted to RGB",
    "CMYK": "CMYK converted to RGB",
    "YCbCr": "YCbCr converted to RGB",
    "RGBX": "RGBX converted to RGB",
}
"""Modes that Pillow converts well, and the note of each."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to bring a picture upright, by EXIF's orientation. ImageOps would write the EXIF data anew, which fails
where they are damaged elsewhere."""

FIRST_FRAME = "first of several frames"
SIXTEEN_BITS = "16 bits scaled to 8"
TURNED = "turned as EXIF says"
ON_WHITE = "transparency laid on white"


class PictureError(Exception):
    """A picture that cannot be used; its text is the reason of the rejection."""


def decode_picture(stream: IO[bytes], limits: Limits) -> tuple[Picture, tuple[str, ...]]:
    """The picture in RGB, upright, on white, and notes of what was converted. Raises PictureError."""
    try:
        with Image.open(stream, formats=FORMATS) as picture:
            check_sides(picture, limits)
            return convert(picture)
    except PictureError:
        raise
    except UnidentifiedImageError:
        names = ", ".join(FORMATS)
        raise PictureError(f"not a picture, or its header is damaged; formats read: {names}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError("picture is a decompression bomb: its header claims too many pixels") from None
    except Exception:  # Pillow's decoders raise whatever they stumble over
        logger.debug("a picture that cannot be decoded", exc_info=True)
        raise PictureError("picture is damaged or cut short") from None


def check_sides(picture: Picture, limits: Limits) -> None:
    """PictureError when the header's width and height are beyond the limits."""
    width, height = picture.size
    size = f"picture has {width} x {height} pixels"
    if max(width, height) > limits.max_side:
        raise PictureError(f"{size}, a side of more than {limits.max_side}")
    if width * height > limits.max_pixels:
        raise PictureError(f"{size}, more than {limits.max_pixels} in all")
    if min(width, height) < limits.min_side:
        raise PictureError(f"{size}, a side of less than {limits.min_side}")


def convert(picture: Picture) -> tuple[Picture, tuple[str, ...]]:
    """Decode the first frame and bring it to RGB."""
    notes = []
    sixteen = holds_sixteen_bits(picture)
    # Pillow turns a TIFF while it decodes it, and finds the EXIF data of a PNG only then.
    turned = picture.format == "TIFF" and orientation_of(picture) in TURNS
    picture.load()
    first = picture.copy()
    if not turned and (turn := TURNS.get(orientation_of(picture))) is not None:
        first, turned = first.transpose(turn), True
    if turned:
        notes.append(TURNED)
    if has_more_frames(picture):
        notes.insert(0, FIRST_FRAME)
    if sixteen:
        notes.append(SIXTEEN_BITS)
        if first.mode.startswith("I"):  # one channel; Pillow has scaled pictures of three itself
            pixels = np.asarray(first).astype(np.uint32)
            first = Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    if first.has_transparency_data:
        notes.append(ON_WHITE)
        colours = first.convert("RGBA")
        ground = Image.new("RGBA", colours.size, "white")
        ground.alpha_composite(colours)
        return ground.convert("RGB"), tuple(notes)
    if first.mode != "RGB":
        if first.mode not in CONVERTED:
            raise PictureError(f"picture's pixels are of mode {first.mode}, whose range is not known")
        notes.append(CONVERTED[first.mode])
    return first.convert("RGB"), tuple(notes)


def holds_sixteen_bits(picture: Picture) -> bool:
    """Whether a PNG or TIFF that is not decoded yet has unsigned channels of 16 bits."""
    if not isinstance(picture, ImageFile.ImageFile) or picture.format not in ("PNG", "TIFF"):
        return False
    raw = [str(tile[3]) for tile in picture.tile]
    return any(";16" in mode and ";16S" not in mode for mode in raw)


def has_more_frames(picture: Picture) -> bool:
    """Whether another frame follows, sound or not; Pillow goes there, so take the first one before."""
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # a damaged second frame
        return True


def orientation_of(picture: Picture) -> int:
    """EXIF's orientation; 1, upright, where there is none."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data beside sound pixels
        return 1
