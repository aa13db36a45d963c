"""Small sets as a map-style data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safetune.pairs import image_tensor, load_pairs, to_tensor, write_pairs


def test_written_pairs_are_loaded_again(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    write_pairs(tmp_path / "pool", pictures, [{"text": "a"}, {"text": "b"}])
    dataset = load_pairs(tmp_path / "pool")
    assert list(dataset["text"]) == ["a", "b"]
    assert torch.equal(image_tensor(dataset, 8), torch.stack([torch.ones(3, 8, 8), -torch.ones(3, 8, 8)]))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pool", [Image.new("RGB", (8, 8))], [{"caption": "a"}])
    with pytest.raises(ValueError, match="has no column 'text'; its columns: image, caption"):
        load_pairs(tmp_path / "pool")


def test_pictures_are_cut_in_the_middle() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 255
    assert torch.equal(to_tensor(Image.fromarray(pixels), 4), torch.ones(3, 4, 4))
