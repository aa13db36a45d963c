import json
from pathlib import Path

import pytest

from safetune.files import replace_folder, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_text_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write_text(path, "old")
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert names(path.parent) == ["note.txt"]


def test_write_json_writes_paths_as_strings(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"folder": Path("runs/a"), "steps": 3})
    assert json.loads((tmp_path / "run.json").read_text()) == {"folder": "runs/a", "steps": 3}


def test_write_json_keeps_the_old_file_when_the_value_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"steps": 3})
    with pytest.raises(TypeError):
        write_json(path, {("a", "tuple"): 1})
    assert json.loads(path.read_text()) == {"steps": 3}
    assert names(tmp_path) == ["run.json"]


def test_replace_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with replace_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
        assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


def test_replace_folder_keeps_the_old_one_on_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("kept")
    with pytest.raises(RuntimeError, match="half way"), replace_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
        raise RuntimeError("half way")
    assert (tmp_path / "out" / "old").read_text() == "kept"
    assert names(tmp_path) == ["out"]


def test_replace_folder_makes_parents(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a" / "b") as temporary:
        (temporary / "file").touch()
    assert names(tmp_path / "a" / "b") == ["file"]
