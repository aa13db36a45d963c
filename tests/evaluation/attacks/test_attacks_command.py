"""`safetune attack`: written attack by attack, gone on with after a kill, refused under other settings."""

import json
from pathlib import Path

import pytest

from safetune.cli import main
from safetune.evaluation.attacks import command
from safetune.evaluation.attacks.command import attack
from safetune.evaluation.attacks.suite import AttackOptions

NAMES = ["search-random", "text-free-inversion"]
OPTIONS = AttackOptions(tokens=2, search_steps=1, checks=1, text_free_steps=1)


def without_time(results: dict[str, object]) -> dict[str, object]:
    rows = results["attacks"].values()  # type: ignore[attr-defined]
    return {**results, "attacks": [{**row, "seconds": 0} for row in rows]}


def test_attacks_are_written_and_not_run_twice(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, run = [], command.run_attacks

    def counted(target: object, case: object, judge: object, names: list[str], *rest: object) -> object:
        ran.extend(names)
        return run(target, case, judge, names, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "run_attacks", counted)

    def attacked(options: AttackOptions = OPTIONS, names: list[str] = NAMES) -> dict[str, object]:
        return attack(tmp_path / "out", str(tiny_pipeline), names=names, count=2, options=options, steps=1)

    first = attacked()
    assert ran == NAMES and first == json.loads((tmp_path / "out" / "attacks.json").read_text())
    (tmp_path / "out" / "text-free-inversion.json").unlink()
    assert without_time(attacked()) == without_time(first)
    assert ran == [*NAMES, "text-free-inversion"]
    protocol = first["protocol"]
    assert protocol["judge"]["name"] == "safetune TinySD judge" and protocol["prompts"]["count"] == 2
    with pytest.raises(ValueError, match="made with other settings"):
        attacked(AttackOptions(tokens=3, search_steps=1, checks=1))
    with pytest.raises(ValueError, match="allowed: prompts"):
        attacked(names=["search-random", "hypnosis"])


def test_the_command(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--attacks", "prompts", "--count", "1", "--out", str(tmp_path / "out")]
    assert main(["attack", "--model", str(tiny_pipeline), *words]) == 0
    assert "under attack, of 1; 0 steps, 1 tries" in capsys.readouterr().out


def test_another_world_needs_prompts_and_a_judge(
    tiny_sd2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "draws_tinysd", lambda backbone: False)
    with pytest.raises(ValueError, match="give a file of harmful prompts and a judge"):
        attack(tmp_path, str(tiny_sd2))
