"""Hashes of pictures: near for the same picture, far for others, none for what is no picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safetune.data.hashing import picture_hashes
from tests.data.pictures import draw_picture


def distance(first: Path, second: Path) -> int:
    (_, one), (_, other) = picture_hashes(first), picture_hashes(second)
    return int(np.bitwise_count(one ^ other).sum())


def test_the_same_picture_otherwise_saved(tmp_path: Path) -> None:
    picture = draw_picture(0)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.jpg", quality=60)
    picture.resize((48, 48)).save(tmp_path / "c.webp")
    draw_picture(1).save(tmp_path / "d.png")
    assert distance(tmp_path / "a.png", tmp_path / "b.jpg") <= 10
    assert distance(tmp_path / "a.png", tmp_path / "c.webp") <= 10
    assert distance(tmp_path / "a.png", tmp_path / "d.png") > 50
    content, looks = picture_hashes(tmp_path / "a.png")
    assert len(content) == 64 and looks.shape == (4,) and looks.dtype == np.uint64


def test_hidden_colours_do_not_count(tmp_path: Path) -> None:
    layer = np.array(draw_picture(0).convert("RGBA"))
    layer[:32, :, 3] = 0
    Image.fromarray(layer).save(tmp_path / "a.png")
    layer[:32, :, :3] = 17
    Image.fromarray(layer).save(tmp_path / "b.png")
    assert distance(tmp_path / "a.png", tmp_path / "b.png") == 0


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n half of one"])
def test_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert picture_hashes(tmp_path / "a.png") is None


def test_cut_off_picture(tmp_path: Path) -> None:
    draw_picture(0).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert picture_hashes(tmp_path / "a.png") is None
