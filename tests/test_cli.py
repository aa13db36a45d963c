"""The command: help at once, mistakes in one message."""

import subprocess
import sys
from pathlib import Path

import pytest

from safetune.bundled import bundled_path
from safetune.cli import COMMANDS, SCRIPTS, build_parser, main, named_values


def test_every_subcommand_has_help_and_a_function() -> None:
    actions = [action for action in build_parser()._actions if hasattr(action, "choices") and action.choices]
    assert set(actions[0].choices) == set(COMMANDS) | set(SCRIPTS)  # type: ignore[arg-type]
    assert all(bundled_path(path).is_file() for path, _ in SCRIPTS.values())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from safetune.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    )


def test_a_mistake_is_one_message_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]  # transformers may warn of torchvision before it
    assert message.startswith("safetune export: ")
    assert "is no finished fine-tuning run" in message


def test_a_script_takes_its_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dedupe", str(tmp_path / "nothing")]) == 2
    assert "safetune dedupe" in capsys.readouterr().err


def test_label_takes_the_pool_first_and_hyphens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hgr = ["--hgr", str(tmp_path), "--text-column=caption", "--out", str(tmp_path)]
    assert main(["label", str(tmp_path / "nothing.parquet"), *hgr]) == 2
    assert f"{tmp_path / 'nothing.parquet'}: no such file or folder" in capsys.readouterr().err
    assert main(["label", str(tmp_path), "--txt-column", "caption"]) == 2
    assert "txt_column" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--steps", "0", "'0': give a whole number of 1 or more"),
        ("--steps", "ten", "'ten': give a whole number of 1 or more"),
        ("--judge-weights", "q16.safetensors", "'q16.safetensors': give NAME=VALUE"),
        ("--columns", "prompt=", "'prompt=': give NAME=VALUE"),
    ],
)
def test_options_of_another_form_are_told_what_to_type(
    option: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--out", "x", option, value])
    assert left.value.code == 2 and wanted in capsys.readouterr().err


def test_named_values() -> None:
    assert named_values("prompt=text,seed=number") == {"prompt": "text", "seed": "number"}
    assert named_values("q16=a=b.safetensors") == {"q16": "a=b.safetensors"}
