"""Reading of configs: a frozen dataclass per stage, filled from YAML and overridden on the command line."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

ConfigType = TypeVar("ConfigType")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_config(
    config_class: type[ConfigType], description: str, argv: Sequence[str] | None = None
) -> ConfigType:
    """Build `config_class` from `--config FILE.yaml` and `--field value` options; later options win.

    Exits with status 2 and a message that names the mistake (unknown keys with "did you mean").
    """
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "--config", action="config", help="YAML file of options; options after it override it"
    )
    parser.add_class_arguments(config_class, None)
    argv = list(sys.argv[1:] if argv is None else argv)
    known = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    for position, word in enumerate(argv):
        path = word.split("=", 1)[1] if word.startswith("--config=") else ""
        if word == "--config" and position + 1 < len(argv):
            path = argv[position + 1]
        if path:
            try:
                check_keys(Path(path), known)
            except ValueError as mistake:
                parser.error(str(mistake))
    options = parser.parse_args(argv)
    del options["config"]
    try:
        return config_class(**options.as_dict())
    except ValueError as mistake:
        parser.error(str(mistake))
    raise AssertionError("parser.error exits")


def check_keys(path: Path, known: Sequence[str]) -> None:
    """ValueError that names every key of the YAML file that no field has."""
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    given = yaml.safe_load(path.read_text()) or {}
    if not isinstance(given, dict):
        raise ValueError(f"--config {path}: a mapping of options is needed, got {type(given).__name__}")
    mistakes = []
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            mistakes.append(f"{key}" + (f" (did you mean {close[0]}?)" if close else ""))
    if mistakes:
        raise ValueError(f"--config {path}: unknown keys: {', '.join(mistakes)}; allowed: {', '.join(known)}")
