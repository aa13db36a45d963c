"""The snippets of docs/guidance.md run, in their order, with small models under the names that they use."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.guidance.families import Family

MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd1", "runs/hgr/hgr"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", "runs/hgr_sdxl/hgr"),
}


def snippets(repository: Path) -> list[str]:
    page = (repository / "docs" / "guidance.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def test_snippets(
    repository: Path, load: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = snippets(repository)
    for name, (family_name, folder) in MODELS.items():
        family = load(family_name, torch.float32)
        family.hgr.save_pretrained(tmp_path / folder)
        assert any(name in block for block in code) and any(folder in block for block in code)
        code = [block.replace(name, str(family.folder)) for block in code]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in code:
        exec(block, names)
    assert names["image"].size == (64, 64)
    assert len(names["images"]) == 2


def test_the_page_names_what_is_public(repository: Path) -> None:
    used = set(re.findall(r"from safetune\.guidance import (.*)", "\n".join(snippets(repository))))
    assert {name for line in used for name in line.split(", ")} == {
        "SafeCFGGuidance",
        "disable_safecfg",
        "enable_safecfg",
        "safecfg_negative",
    }
