"""Files written whole: to a temporary name first, then moved into place."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives a LoRA and looks for."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write JSON, paths as strings, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_parquet(frame: "pd.DataFrame", path: Path) -> None:
    """Write a parquet file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frame.to_parquet(temporary, index=False)
    temporary.replace(path)


def check_settings(path: Path, settings: Mapping[str, object], option: str = "--out") -> None:
    """ValueError when `path` holds other settings, or when its folder holds files but no settings.

    So a run never mixes what it makes with what others made. The caller writes the file afterwards, with
    further facts if it likes: of several processes all check before one writes. `option` is what names
    another folder.
    """
    if not path.is_file():
        if path.parent.is_dir() and any(not _is_temporary(file) for file in path.parent.iterdir()):
            raise ValueError(
                f"{path.parent} holds files that were not made here (it has no {path.name}): give an empty "
                f"or a new folder as {option}"
            )
        return
    found, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names:
        changes = "; ".join(f"{name} was {found.get(name)}, is {wanted[name]}" for name in names)
        raise ValueError(
            f"{path.parent} was made with other settings: {changes}. Give another {option}, or those "
            "settings to go on"
        )


def _is_temporary(path: Path) -> bool:
    """Whether a killed process may have left the file while it wrote."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def fingerprint_of(values: Iterable[object]) -> str:
    """16 hex digits of SHA-256 over values that JSON can hold."""
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
