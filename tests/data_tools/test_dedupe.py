"""Duplicates of an image folder: listed, left out of a new folder, never deleted."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from datasets import load_dataset

from data_tools import dedupe
from tests.data.pictures import draw_picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures; one again as a copy, one again as a JPEG of half the size, one file that is broken."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        draw_picture(number).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "sub" / "copy.png")
    draw_picture(1).resize((48, 48)).save(folder / "sub" / "small.jpg", quality=80)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def add_metadata(data: Path, names: list[str]) -> None:
    lines = [
        json.dumps({"file_name": name, "text": f"größe\u2028{name}"}, ensure_ascii=False) for name in names
    ]
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def listed(folder: Path) -> list[tuple[str, str, bool]]:
    frame = pd.read_parquet(folder / "duplicates.parquet")
    assert list(frame.columns) == ["key", "duplicate_of", "distance", "exact"]
    assert (frame.distance[frame.exact] == 0).all() and (frame.distance <= 10).all()
    return list(zip(frame.key, frame.duplicate_of, frame.exact, strict=True))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_list(data: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    before = files(data)
    assert dedupe.main([str(data), "--workers", "2"]) == 0
    assert listed(data / "dedupe") == [("sub/copy.png", "0.png", True), ("sub/small.jpg", "1.png", False)]
    facts = json.loads((data / "dedupe" / "dedupe.json").read_text())
    assert (facts["pictures"], facts["exact"], facts["near"]) == (6, 1, 1)
    assert facts["unreadable"] == ["broken.png"] and "broken.png" in caplog.text
    assert "6 pictures, 1 exact and 1 near-duplicates" in capsys.readouterr().out
    assert files(data) == before | {"dedupe/duplicates.parquet", "dedupe/dedupe.json"}


def test_apply(data: Path, tmp_path: Path) -> None:
    add_metadata(data, ["sub/copy.png", "2.png", "1.png", "0.png", "sub/small.jpg"])
    before = files(data)
    out = tmp_path / "unique"
    assert (
        dedupe.main([str(data / "metadata.jsonl"), "--apply", str(out), "--out", str(tmp_path / "list")]) == 0
    )
    assert listed(tmp_path / "list") == [("0.png", "sub/copy.png", True), ("sub/small.jpg", "1.png", False)]
    assert files(out) == {"metadata.jsonl", "sub/copy.png", "1.png", "2.png"}
    assert files(data) == before
    assert os.stat(out / "1.png").st_ino == os.stat(data / "1.png").st_ino  # a hard link
    dataset = load_dataset("imagefolder", data_dir=str(out), split="train")
    assert sorted(dataset["text"]) == sorted(
        f"größe\u2028{name}" for name in ("sub/copy.png", "1.png", "2.png")
    )


def test_copies_where_links_cannot_be(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert dedupe.main([str(data), "--apply", str(tmp_path / "unique")]) == 0
    assert files(tmp_path / "unique") == {"0.png", "1.png", "2.png"}
    assert (tmp_path / "unique" / "0.png").read_bytes() == (data / "0.png").read_bytes()
    assert os.stat(tmp_path / "unique" / "0.png").st_ino != os.stat(data / "0.png").st_ino


def test_distance_0_keeps_near_duplicates(data: Path) -> None:
    assert dedupe.main([str(data), "--distance", "0"]) == 0
    assert ("sub/copy.png", "0.png", True) in listed(data / "dedupe")
    draw_picture(2).resize((20, 20)).save(data / "tiny.png")
    assert dedupe.main([str(data), "--distance", "0"]) == 0
    assert "tiny.png" not in {key for key, _, _ in listed(data / "dedupe")}


def test_without_duplicates(tmp_path: Path) -> None:
    draw_picture(0).save(tmp_path / "0.png")
    assert dedupe.main([str(tmp_path)]) == 0
    assert listed(tmp_path / "dedupe") == []


def test_the_list_does_not_disturb_the_data(data: Path) -> None:
    add_metadata(data, ["0.png", "1.png"])
    assert dedupe.main([str(data)]) == 0
    dataset = load_dataset("imagefolder", data_files={"train": [f"{data}/**"]}, split="train")
    assert set(dataset.column_names) == {"image", "text"}


def spoil_escape(data: Path) -> None:
    draw_picture(9).save(data.parent / "outside.png")
    add_metadata(data, ["../outside.png"])


def spoil_missing(data: Path) -> None:
    add_metadata(data, ["0.png", "gone.png"])


def spoil_line(data: Path) -> None:
    (data / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{"text": "no name"}\n')


def spoil_csv(data: Path) -> None:
    (data / "sub" / "metadata.csv").write_text("file_name,text\ncopy.png,a\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_escape, "file_name of line 1 is not inside of"),
        (spoil_missing, "line 2 names a picture that is not there"),
        (spoil_line, "line 2 is no object with a file_name"),
        (spoil_csv, "put all metadata into"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_mistakes(data: Path, spoil: object, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(data)
    assert dedupe.main([str(data)]) == 2
    assert message in capsys.readouterr().err
    assert not (data / "dedupe").exists()


def test_apply_never_replaces_a_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert dedupe.main([str(data), "--apply", str(tmp_path / "there")]) == 2
    assert "exists: give a new folder" in capsys.readouterr().err
