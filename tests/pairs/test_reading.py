"""One record at a time: what is a pair, what is a rejection, and why."""

import os
import random
from pathlib import Path

import pytest

from safetune.pairs import FilePart, Kind, Limits, Pair, Record, Rejection, read_pair
from tests.pairs.damaged import NOTES, content_of

IMAGE = content_of("sound")
LIMITS = Limits()


def reason_of(record: Record, kind: Kind = "pairs", limits: Limits = LIMITS) -> str:
    result = read_pair(record, kind, limits)
    assert isinstance(result, Rejection)
    assert (result.row, result.key) == (record.row, record.key)
    return result.reason


def test_a_pair() -> None:
    pair = read_pair(Record(3, "k", b" a caf\xc3\xa9\n", IMAGE), "pairs", LIMITS)
    assert isinstance(pair, Pair)
    assert (pair.row, pair.key, pair.text, pair.notes) == (3, "k", "a café", ())
    assert pair.picture is not None and pair.picture.size == (64, 64)


def test_prompts_alone_need_no_picture_and_pictures_no_prompt() -> None:
    assert read_pair(Record(0, "k", "a cat", b"broken"), "prompts", LIMITS) == Pair(0, "k", "a cat", None)
    pair = read_pair(Record(0, "k", b"\xff", IMAGE), "images", LIMITS)
    assert isinstance(pair, Pair)
    assert pair.text == ""
    assert pair.picture is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "caption is missing"),
        ("", "caption is empty"),
        (b" \n", "caption is empty"),
        (b"caf\xe9", "caption is not UTF-8"),
        ("caf\udce9", "caption is not UTF-8"),
        ("a" * 2_001, "caption has 2001 characters, more than 2000"),
    ],
)
def test_captions(text: str | bytes | None, reason: str) -> None:
    assert reason_of(Record(0, "k", text, IMAGE)) == reason
    assert reason_of(Record(0, "k", text, None), "prompts") == reason


def test_a_caption_of_the_longest_length_is_kept() -> None:
    assert isinstance(read_pair(Record(0, "k", "ä" * 2_000, None), "prompts", LIMITS), Pair)


def test_a_defect_comes_before_everything() -> None:
    assert reason_of(Record(0, "k", None, None, "line is not JSON"), "images") == "line is not JSON"


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for image, reason in (
        (None, "picture is missing"),
        (b"", "picture's file is empty"),
        (tmp_path / "empty.png", "picture's file is empty"),
        (tmp_path / "none.png", "picture's file is missing"),
        (tmp_path, "picture's file is missing"),
        (tmp_path / "pipe.png", "picture's file is missing"),
        (tmp_path / ("a" * 300), "picture's file cannot be read (File name too long)"),
        (FilePart(tmp_path / "none.tar", 0, 10), "picture's file cannot be read (No such file or directory)"),
    ):
        assert reason_of(Record(0, "k", "a cat", image)) == reason


def test_a_picture_inside_another_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 100 + IMAGE + b"y" * 100)
    record = Record(0, "k", "a cat", FilePart(tmp_path / "a.tar", 100, len(IMAGE)))
    assert isinstance(read_pair(record, "pairs", LIMITS), Pair)
    assert reason_of(Record(0, "k", "a cat", FilePart(tmp_path / "a.tar", 0, 100))).startswith(
        "not a picture"
    )


def test_large_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(IMAGE)
    limits = Limits(max_bytes=len(IMAGE) - 1)
    reason = f"picture's file has {len(IMAGE)} bytes, more than {len(IMAGE) - 1}"
    part = FilePart(tmp_path / "large.png", 0, len(IMAGE))
    for image in (IMAGE, tmp_path / "large.png", part):
        assert reason_of(Record(0, "k", "a cat", image), limits=limits) == reason


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it makes of the damage
@pytest.mark.parametrize("kind", NOTES)
def test_random_damage_never_raises(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        content = bytearray(content_of(kind))
        for _ in range(rng.choice((1, 4, 30))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        content = content[: rng.randrange(len(content))] if rng.random() < 0.3 else content
        assert isinstance(read_pair(Record(0, "k", "a", bytes(content)), "pairs", LIMITS), Pair | Rejection)
