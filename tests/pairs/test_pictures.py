"""Every conversion's pixels, and that headers are judged before pixels are decoded."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile

from safetune.pairs.pictures import PictureError, decode_picture
from safetune.pairs.records import Limits
from tests.pairs.damaged import NOTES, content_of, encoded, orientation, png, ramp_16_bit, scene

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def decode(content: bytes, limits: Limits | None = None) -> Image.Image:
    return decode_picture(BytesIO(content), limits or Limits())[0]


@pytest.mark.parametrize("kind", NOTES)
def test_everything_kept_becomes_a_detached_rgb_picture(kind: str) -> None:
    picture = decode(content_of(kind))
    assert type(picture) is Image.Image
    assert (picture.mode, picture.size) == ("RGB", (64, 64))


@pytest.mark.parametrize("kind", ["animated_gif", "animated_webp", "palette", "wrong_suffix"])
def test_the_first_frame_keeps_its_colours(kind: str) -> None:
    picture = decode(content_of(kind))
    assert picture.getpixel((32, 8)) == RED
    assert picture.getpixel((32, 56)) == BLUE


def test_cmyk_keeps_its_colours() -> None:
    red, _, blue = decode(content_of("cmyk")).getpixel((32, 8))
    assert red > 240
    assert blue < 15


@pytest.mark.parametrize("kind", ["grey_16_bit", "rgb_16_bit"])
def test_16_bits_are_scaled_and_not_clipped(kind: str) -> None:
    pixels = np.asarray(decode(content_of(kind)))[0, :, 1].astype(int)
    assert np.abs(pixels - ramp_16_bit()[0] / 257).max() <= 1
    assert (pixels[0], pixels[-1]) == (0, 255)


def test_16_bit_tiff_of_either_byte_order() -> None:
    for order in ("<u2", ">u2"):
        picture = Image.fromarray(ramp_16_bit().astype(order))
        pixels = np.asarray(decode(encoded(picture, "TIFF")))[0, :, 0].astype(int)
        assert np.abs(pixels - ramp_16_bit()[0] / 257).max() <= 1


def test_transparency_lies_on_white() -> None:
    picture = decode(content_of("alpha"))
    assert picture.getpixel((8, 8)) == BLACK
    assert picture.getpixel((56, 8)) == WHITE
    assert decode(content_of("palette_with_transparency")).getpixel((8, 8)) == WHITE


def test_half_transparency_is_mixed() -> None:
    assert decode(encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 127)))).getpixel((0, 0)) == (255, 128, 128)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns_a_picture_once(format: str) -> None:
    # Orientation 6: the top of the scene is at the right of the picture as it is shown.
    content = encoded(scene(64, 32), format, exif=orientation(6))
    picture, notes = decode_picture(BytesIO(content), Limits())
    assert picture.size == (32, 64)
    assert notes == ("turned as EXIF says",)
    red, _, blue = picture.getpixel((28, 32))
    assert red > 200
    assert blue < 60


@pytest.mark.parametrize("kind", ["wide", "large", "bomb"])
def test_a_large_header_is_never_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(picture: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(PictureError, match=r"pixels"):
        decode(content_of(kind))


def test_a_bomb_below_pillows_error_is_told_by_its_warning_or_the_limits() -> None:
    generous = Limits(max_side=100_000, max_pixels=10**12)
    with pytest.raises(PictureError, match="decompression bomb"):
        decode(png(20_000, 20_000, 8, 2, np.zeros(8, np.uint8)), generous)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(PictureError, match="13000 x 13000 pixels"),
    ):
        decode(png(13_000, 13_000, 8, 2, np.zeros(8, np.uint8)))


def test_a_damaged_second_frame_does_not_cost_the_first() -> None:
    whole = content_of("animated_gif")
    picture, notes = decode_picture(BytesIO(whole[:-40] + b"\x2c\xff"), Limits())
    assert picture.getpixel((32, 8)) == RED
    assert notes[-1] == "palette converted to RGB"


def test_limits_are_met_exactly() -> None:
    content = encoded(Image.new("RGB", (40, 20)))
    assert decode(content, Limits(max_side=40, max_pixels=800, min_side=20)).size == (40, 20)
    for limits in (Limits(max_side=39), Limits(max_pixels=799), Limits(min_side=21)):
        with pytest.raises(PictureError, match="picture has 40 x 20 pixels"):
            decode(content, limits)
