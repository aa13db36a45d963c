"""Pictures by key: only those asked for, the first of a repeated key, none that is damaged."""

import json
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from safetune.labeling import pictures
from safetune.labeling.pictures import find_records, open_labelled, read_pictures
from safetune.pairs import open_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["a.png", "b.png", "broken.png", "c.png", "gone.png"]
    for name, colour in (("a.png", "red"), ("b.png", "lime"), ("c.png", "blue")):
        Image.new("RGB", (32, 24), colour).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [json.dumps({"file_name": name, "text": "a caption"}) for name in [*names, "a.png"]]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_pictures_of_the_keys_that_can_be_read(folder: Path) -> None:
    found = read_pictures(
        open_pairs(folder, kind="images"), ["c.png", "a.png", "broken.png", "gone.png", "z"]
    )
    assert {key: picture.getpixel((0, 0)) for key, picture in found.items()} == {
        "a.png": (255, 0, 0),
        "c.png": (0, 0, 255),
    }


def test_the_first_of_a_repeated_key_and_nothing_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "read_pair", None)
    records = find_records(open_pairs(folder, kind="images"), ["a.png", "b.png"])
    assert {key: record.row for key, record in records.items()} == {"a.png": 0, "b.png": 1}


def test_opened_as_the_labeler_read_it(tmp_path: Path) -> None:
    """Its picture and key columns and its split are in labels.json."""
    picture = BytesIO()
    Image.new("RGB", (32, 24), "red").save(picture, "PNG")
    rows = {"photo": [picture.getvalue()], "caption": ["a cat"], "name": ["x"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "pool.parquet")
    options = {"kind": "pairs", "image_column": "photo", "key_column": "name", "split": "train"}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.json").write_text(json.dumps({"options": options}))
    source = open_labelled(tmp_path, tmp_path / "labels")
    assert list(read_pictures(source, ["x"])) == ["x"]
    (tmp_path / "labels" / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match="no column 'image'"):
        open_labelled(tmp_path, tmp_path / "labels")
