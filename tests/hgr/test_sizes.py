"""Sizes of the redirector, and their parameters as the documentation counts them."""

import re
from pathlib import Path

import pytest
import torch

from safetune.hgr import HGR
from safetune.hgr.model import SIZES

FAMILIES = {
    "SD 1.x": (77, 768, 0),
    "SD 2.x": (77, 1024, 0),
    "SDXL": (77, 2048, 1280),
    "SD 3.5": (333, 4096, 2048),
}
"""Tokens, text width and pooled width."""


def parameters(family: str, size: str) -> int:
    (tokens, text_width, pooled), (width, layers, heads) = FAMILIES[family], SIZES[size]
    with torch.device("meta"):
        hgr = HGR(text_width, tokens, width, layers, heads, pooled)
    return sum(weight.numel() for weight in hgr.parameters())


def test_the_default_is_small_enough_for_sd15() -> None:
    assert parameters("SD 1.x", "base") <= 25e6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_documentation_counts_right(repository: Path, family: str) -> None:
    page = (repository / "docs" / "method.md").read_text()
    row = re.search(rf"^\| {re.escape(family)} \|(.*)\|$", page, flags=re.MULTILINE)
    assert row, f"docs/method.md has no row for {family}"
    tokens, text_width, pooled = FAMILIES[family]
    shape = f"{tokens} × {text_width}" + (f", {pooled}" if pooled else "")
    counts = [f"{parameters(family, size) / 1e6:.1f} M" for size in SIZES]
    assert [cell.strip() for cell in row.group(1).split("|")] == [shape, *counts]
