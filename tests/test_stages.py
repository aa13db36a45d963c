"""Stages: in turn or side by side, skipped where their product is, with their times."""

import json
import os
import threading
from pathlib import Path

import pytest

from safetune import stages
from safetune.stages import Stage, run_stages


def meeting(folder: Path, names: list[str], seen: dict[str, str | None]) -> list[Stage]:
    """Stages that end only once all of them run, and note the threads that their commands would have."""
    barrier = threading.Barrier(len(names), timeout=10)

    def stage(name: str) -> Stage:
        def run() -> None:
            barrier.wait()
            seen[name] = os.environ.get("OMP_NUM_THREADS")
            (folder / name).touch()

        return Stage(name, folder / name, run, "together")

    return [stage(name) for name in names]


def fail() -> None:
    raise RuntimeError("broken")


def test_a_group_runs_side_by_side_with_a_part_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "processes_at_once", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    seen: dict[str, str | None] = {}
    first = Stage("first", tmp_path / "first", (tmp_path / "first").touch)
    run_stages([first, *meeting(tmp_path, ["a", "b"], seen)], tmp_path)
    assert seen == {"a": "2", "b": "2"}
    assert os.environ["OMP_NUM_THREADS"] == "3" and "TQDM_DISABLE" not in os.environ
    assert set(json.loads((tmp_path / "seconds.json").read_text())) == {"first", "together"}


def test_what_a_group_lacks_is_made_and_its_time_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "processes_at_once", lambda: 2)
    whole = Stage("whole", tmp_path / "whole", (tmp_path / "whole").touch, "together")
    with pytest.raises(RuntimeError, match="broken"):
        run_stages([whole, Stage("part", tmp_path / "part", fail, "together")], tmp_path)
    (tmp_path / "seconds.json").write_text(json.dumps({"together": 100.0}))
    ran: list[str] = []

    def part() -> None:
        ran.append("part")
        (tmp_path / "part").touch()

    run_stages([whole, Stage("part", tmp_path / "part", part, "together")], tmp_path)
    assert ran == ["part"]
    assert 100 <= json.loads((tmp_path / "seconds.json").read_text())["together"] < 110


def test_a_stage_without_its_product_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stage idle ended without writing"):
        run_stages([Stage("idle", tmp_path / "none", lambda: None)], tmp_path)
    assert not (tmp_path / "seconds.json").exists()
