"""From a raw record to a pair that can be scored, or to the reason why not."""

from io import BytesIO
from pathlib import Path
from typing import IO

from safetune.pairs.pictures import PictureError, decode_picture
from safetune.pairs.records import FilePart, Kind, Limits, Pair, Record, Rejection


def read_pair(record: Record, kind: Kind, limits: Limits) -> Pair | Rejection:
    """Decode and check a record. Bad data is a rejection with the first reason found, never an exception."""
    text, reason = "", record.defect
    if not reason and kind != "images":
        text, reason = read_text(record.text, limits)
    if reason:
        return Rejection(record.row, record.key, reason)
    if kind == "prompts":
        return Pair(record.row, record.key, text, None)
    try:
        with open_image(record.image, limits) as stream:
            picture, notes = decode_picture(stream, limits)
    except PictureError as error:
        return Rejection(record.row, record.key, str(error))
    return Pair(record.row, record.key, text, picture, notes)


def read_text(raw: str | bytes | None, limits: Limits) -> tuple[str, str]:
    """The prompt without spaces around it, and "" or what is wrong with it."""
    if raw is None:
        return "", "caption is missing"
    try:
        # Text with marked bytes (surrogates) came from a file that is not UTF-8.
        text = (raw if isinstance(raw, bytes) else raw.encode("utf-8")).decode("utf-8").strip()
    except UnicodeError:
        return "", "caption is not UTF-8"
    if not text:
        return "", "caption is empty"
    if len(text) > limits.max_characters:
        return "", f"caption has {len(text)} characters, more than {limits.max_characters}"
    return text, ""


def open_image(image: bytes | Path | FilePart | None, limits: Limits) -> IO[bytes]:
    """The picture's bytes as a file. PictureError when there are none, or too many."""
    if image is None:
        raise PictureError("picture is missing")
    if isinstance(image, bytes):
        check_size(len(image), limits)
        return BytesIO(image)
    try:
        if isinstance(image, FilePart):
            check_size(image.size, limits)
            with image.path.open("rb") as archive:
                archive.seek(image.offset)
                return BytesIO(archive.read(image.size))
        # Opening a named pipe would wait for ever.
        if not image.is_file():
            raise PictureError("picture's file is missing")
        check_size(image.stat().st_size, limits)
        return image.open("rb")
    except OSError as error:
        raise PictureError(f"picture's file cannot be read ({error.strerror})") from None


def check_size(size: int, limits: Limits) -> None:
    """PictureError for an empty file and for one above the limit."""
    if size == 0:
        raise PictureError("picture's file is empty")
    if size > limits.max_bytes:
        raise PictureError(f"picture's file has {size} bytes, more than {limits.max_bytes}")
