"""The command: help at once, mistakes in one message."""

import subprocess
import sys
from pathlib import Path

import pytest

from safetune.cli import COMMANDS, build_parser, main


def test_every_subcommand_has_help_and_a_function() -> None:
    actions = [action for action in build_parser()._actions if hasattr(action, "choices") and action.choices]
    assert set(actions[0].choices) == set(COMMANDS)  # type: ignore[arg-type]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from safetune.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    )


def test_a_mistake_is_one_message_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("safetune export: ")
    assert "is no finished fine-tuning run" in message
