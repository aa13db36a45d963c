"""Files written whole: to a temporary name first, then moved into place."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
