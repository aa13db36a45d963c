"""A pool of damaged and convertible pairs, as an image folder: what the wild holds, made on the spot."""

import json
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

UNREADABLE = "not a picture, or its header is damaged; formats read: PNG, JPEG, WEBP, GIF, BMP, TIFF"

NOTES: dict[str, tuple[str, ...]] = {
    "greyscale": ("greyscale converted to RGB",),
    "sound": (),
    "animated_gif": ("first of several frames", "palette converted to RGB"),
    "animated_webp": ("first of several frames",),
    "cmyk": ("CMYK converted to RGB",),
    "grey_16_bit": ("16 bits scaled to 8", "greyscale converted to RGB"),
    "rgb_16_bit": ("16 bits scaled to 8",),
    "alpha": ("transparency laid on white",),
    "palette_with_transparency": ("transparency laid on white",),
    "palette": ("palette converted to RGB",),
    "exif_turned": ("turned as EXIF says",),
    "broken_exif": (),
    "wrong_suffix": (),
}
"""Kinds that are kept, and the notes of each."""

REASONS = {
    "repeated": "key was there before",
    "corrupt": "picture is damaged or cut short",
    "truncated_jpeg": "picture is damaged or cut short",
    "truncated_png": "picture is damaged or cut short",
    "truncated_webp": "picture is damaged or cut short",
    "empty_file": "picture's file is empty",
    "not_an_image": UNREADABLE,
    "format_not_read": UNREADABLE,
    "float_pixels": "picture's pixels are of mode F, whose range is not known",
    "wide": "picture has 20000 x 16 pixels, a side of more than 10000",
    "large": "picture has 9000 x 9000 pixels, more than 64000000 in all",
    "bomb": "picture is a decompression bomb: its header claims too many pixels",
    "tracking_dot": "picture has 1 x 1 pixels, a side of less than 16",
    "missing_file": "picture's file is missing",
    "no_file_name": "file_name is missing",
    "parent_folder": "file_name points outside the folder",
    "absolute_path": "file_name points outside the folder",
    "not_json": "line is not JSON",
    "not_utf8": "line is not UTF-8",
    "not_an_object": "line is not a JSON object",
    "no_caption": "caption is missing",
    "null_caption": "caption is missing",
    "empty_caption": "caption is empty",
    "blank_caption": "caption is empty",
    "number_caption": "caption is not text",
    "broken_caption": "caption is not UTF-8",
    "long_caption": "caption has 10000 characters, more than 2000",
}
"""Kinds that are rejected under the default limits, and the reason of each."""

REPEAT = ("greyscale", "repeated")
KINDS = (*REPEAT, *(kind for kind in (*NOTES, *REASONS) if kind not in REPEAT))
"""In the order in which a corpus goes through them; `repeated` names the file of the row before it."""

BROKEN_LINES = {
    "not_json": b'{"file_name": "00000.png", "text": ',
    "not_utf8": b'{"file_name": "00000.png", "text": "caf\xe9"}',
    "not_an_object": b'["00000.png", "a cat"]',
}
CAPTIONS: dict[str, object] = {
    "null_caption": None,
    "empty_caption": "",
    "blank_caption": " \t\n",
    "number_caption": 7,
    "broken_caption": "a cat \ud800",
    "long_caption": "a" * 10_000,
}
NAMES = {"parent_folder": "../{}.png", "absolute_path": "/tmp/{}.png"}


def write_damaged_corpus(folder: Path, count: int) -> dict[str, list[str]]:
    """Write `count` rows, kind after kind and over again; returns the keys of each kind in order."""
    folder.mkdir(parents=True)
    keys: dict[str, list[str]] = {kind: [] for kind in KINDS}
    lines, name = [], ""
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        if kind != "repeated":
            name = NAMES.get(kind, "{}.png").format(f"{number:05d}")
        if content := content_of(kind):
            (folder / name).write_bytes(content)
        elif kind == "empty_file":
            (folder / name).touch()
        row = {"file_name": name, "text": CAPTIONS.get(kind, f"a cat in the forest, number {number}")}
        if kind in ("no_caption", "no_file_name"):
            del row["text" if kind == "no_caption" else "file_name"]
        lines.append(BROKEN_LINES.get(kind) or json.dumps(row).encode())
        lost = kind in BROKEN_LINES or kind == "no_file_name"
        keys[kind].append(f"metadata.jsonl:{number + 1}" if lost else name)
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return keys


@cache
def content_of(kind: str) -> bytes:
    """The picture file of a kind; empty where it has none."""
    makers = {
        "greyscale": lambda: encoded(scene().convert("L")),
        "animated_gif": lambda: frames("GIF"),
        "animated_webp": lambda: frames("WEBP", lossless=True),
        "cmyk": lambda: encoded(scene().convert("CMYK"), "JPEG"),
        "grey_16_bit": lambda: encoded(Image.fromarray(ramp_16_bit())),
        "rgb_16_bit": lambda: png(64, 64, 16, 2, np.repeat(ramp_16_bit()[..., None], 3, 2).astype(">u2")),
        "alpha": lambda: encoded(half_transparent()),
        "palette_with_transparency": lambda: encoded(scene().quantize(16), transparency=bytes([0] * 16)),
        "palette": lambda: encoded(scene().quantize(16)),
        "exif_turned": lambda: encoded(scene(), "JPEG", exif=orientation(6)),
        "broken_exif": lambda: encoded(scene(), "JPEG", exif=b"Exif\0\0broken"),
        "wrong_suffix": lambda: encoded(scene(), "BMP"),
        "corrupt": lambda: overwritten(encoded(noise())),
        "truncated_jpeg": lambda: halved(encoded(noise(), "JPEG")),
        "truncated_png": lambda: halved(encoded(noise())),
        "truncated_webp": lambda: halved(encoded(noise(), "WEBP")),
        "not_an_image": lambda: b"<html>404 not found</html>",
        "format_not_read": lambda: encoded(scene(), "PPM"),
        "float_pixels": lambda: encoded(Image.fromarray(np.ones((64, 64), np.float32)), "TIFF"),
        "wide": lambda: encoded(Image.new("RGB", (20_000, 16))),
        "large": lambda: png(9_000, 9_000, 8, 2, np.zeros(8, np.uint8)),
        "bomb": lambda: png(60_000, 60_000, 8, 2, np.zeros(8, np.uint8)),
        "tracking_dot": lambda: encoded(Image.new("RGB", (1, 1))),
    }
    if kind in makers:
        return makers[kind]()
    empty = kind in ("repeated", "empty_file", "missing_file", *NAMES, *BROKEN_LINES)
    return b"" if empty else encoded(scene())


def scene(width: int = 64, height: int = 64) -> Image.Image:
    """Red above, blue below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (255, 0, 0)
    pixels[height // 2 :] = (0, 0, 255)
    return Image.fromarray(pixels)


def noise() -> Image.Image:
    """A picture that no format makes small, so that half of its file is half of its pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def ramp_16_bit() -> np.ndarray:
    """0 to 65535 from left to right (64, 64)."""
    return np.tile(np.linspace(0, 65_535, 64).astype(np.uint16), (64, 1))


def half_transparent() -> Image.Image:
    """Black; the left half opaque, the right half not there."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32, 3] = 255
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def frames(format: str, **options: object) -> bytes:
    """An animation of two frames: the scene, then black."""
    return encoded(scene(), format, save_all=True, append_images=[Image.new("RGB", (64, 64))], **options)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    return exif


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    """The same file with 200 bytes of its middle overwritten."""
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 200 + content[middle + 200 :]


def png(width: int, height: int, bits: int, colours: int, pixels: np.ndarray) -> bytes:
    """A PNG by hand: of what Pillow cannot write, or of a header that claims more than the file holds."""
    rows = pixels.reshape(len(pixels), -1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
