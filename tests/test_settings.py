"""Settings of a folder: the same go on, others are named, foreign files are left alone."""

from pathlib import Path

import pytest

from safetune.files import check_settings, write_json


def test_new_and_empty_folders(tmp_path: Path) -> None:
    check_settings(tmp_path / "new" / "made.json", {"seed": 0})
    check_settings(tmp_path / "made.json", {"seed": 0})


def test_same_settings_go_on_whatever_else_the_file_says(tmp_path: Path) -> None:
    write_json(tmp_path / "made.json", {"seed": 0, "sizes": [1, 2], "versions": {"torch": "1"}})
    check_settings(tmp_path / "made.json", {"seed": 0, "sizes": (1, 2)})


def test_other_settings_are_named(tmp_path: Path) -> None:
    write_json(tmp_path / "made.json", {"seed": 0, "steps": 5})
    with pytest.raises(
        ValueError, match=r"other settings: seed was 0, is 1; eta was None, is 2\. Give another"
    ):
        check_settings(tmp_path / "made.json", {"seed": 1, "steps": 5, "eta": 2})


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"files that were not made here \(it has no made.json\)"):
        check_settings(tmp_path / "made.json", {"seed": 0})


def test_what_a_killed_process_left_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / ".made.json.1.tmp").touch()
    check_settings(tmp_path / "made.json", {"seed": 0})
