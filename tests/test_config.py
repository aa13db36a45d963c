from dataclasses import dataclass
from pathlib import Path

import pytest

from safetune.config import parse_config


@dataclass(frozen=True)
class Example:
    output_dir: Path = Path("runs/example")
    """Folder of results."""
    steps: int = 10
    """Optimizer steps."""
    lr: float = 1e-3
    """Learning rate."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: give 1 or more")


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text("steps: 20\nlr: 0.5\n")
    return path


def parse(*argv: object) -> Example:
    return parse_config(Example, "An example.", [str(word) for word in argv])


def error(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_defaults() -> None:
    assert parse() == Example(Path("runs/example"), 10, 1e-3)


def test_yaml_overrides_defaults(yaml_file: Path) -> None:
    assert parse("--config", yaml_file) == Example(Path("runs/example"), 20, 0.5)
    assert parse(f"--config={yaml_file}") == Example(Path("runs/example"), 20, 0.5)


def test_later_options_win(yaml_file: Path) -> None:
    assert parse("--config", yaml_file, "--steps", 30) == Example(Path("runs/example"), 30, 0.5)
    assert parse("--steps", 30, "--config", yaml_file) == Example(Path("runs/example"), 20, 0.5)


def test_numbers_in_exponent_form(tmp_path: Path) -> None:
    path = tmp_path / "exponent.yaml"
    path.write_text("lr: 2e-3\n")
    assert parse("--config", path).lr == 0.002


def test_an_unknown_key_suggests_the_right_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("stepz: 20\ncolour: red\n")
    message = error(capsys, "--config", path)
    assert "stepz (did you mean steps?)" in message
    assert "colour" in message
    assert "allowed: output_dir, steps, lr" in message


def test_an_unknown_option_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--stepz" in error(capsys, "--stepz", 3)


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path / 'none.yaml'}: no such file" in error(capsys, "--config", tmp_path / "none.yaml")


def test_a_file_must_hold_a_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- steps\n")
    assert "a mapping of options is needed, got list" in error(capsys, "--config", path)


def test_a_wrong_type_names_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert "steps" in error(capsys, "--steps", "many")


def test_a_mistake_found_by_the_config_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "steps 0: give 1 or more" in error(capsys, "--steps", 0)


def test_help_shows_the_docstring_of_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0
    assert "Optimizer steps." in capsys.readouterr().out
