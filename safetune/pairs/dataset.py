"""Prompt-image pairs on disk: whatever `datasets` reads, as pictures in [-1, 1] and columns of text."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from PIL.Image import Image as Picture
from torch import Tensor

from safetune.files import replace_folder


def load_pairs(data: str | Path, text_column: str = "text", split: str = "train") -> Dataset:
    """An image folder with metadata.jsonl, a folder of parquet files, or a hub name, as a map-style dataset.

    Raises ValueError when the text or image column is not there.
    """
    path = Path(data)
    if path.is_dir():
        parquet = sorted(str(file) for file in path.glob("*.parquet"))
        if parquet:
            dataset = load_dataset("parquet", data_files={"train": parquet}, split="train")
        else:
            dataset = load_dataset("imagefolder", data_files={"train": [f"{path}/**"]}, split="train")
    else:
        dataset = load_dataset(str(data), split=split)
    for column in (text_column, "image"):
        if column not in dataset.column_names:
            raise ValueError(
                f"{data} has no column {column!r}; its columns: {', '.join(dataset.column_names)}. "
                "An image folder needs a metadata.jsonl with file_name and text on each line"
            )
    return dataset.cast_column("image", Image(mode="RGB"))


def image_tensor(dataset: Dataset, size: int) -> Tensor:
    """All pictures (N, 3, size, size) in [-1, 1], scaled on the short side and cut in the middle."""
    return torch.stack([to_tensor(picture, size) for picture in dataset["image"]])


def to_tensor(picture: Picture, size: int) -> Tensor:
    """One picture (3, size, size) in [-1, 1]: the square in its middle, scaled."""
    if picture.size != (size, size):
        side = min(picture.size)
        left, top = ((length - side) / 2 for length in picture.size)
        picture = picture.resize((size, size), box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def write_pairs(folder: Path, pictures: Iterable[Picture], rows: Iterable[dict[str, Any]]) -> None:
    """Write an image folder with metadata.jsonl, whole or not at all; each row's columns beside file_name."""
    with replace_folder(folder) as temporary:
        lines = []
        for number, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
            name = f"{number:06d}.png"
            picture.save(temporary / name)
            lines.append(json.dumps({"file_name": name, **row}))
        (temporary / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
