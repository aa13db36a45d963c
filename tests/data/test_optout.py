"""Opt-out headers, for all robots, for us and for others."""

import pytest

from safetune.data.optout import refusal


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("noai", "noai"),
        ("NoAI", "noai"),
        ("noimageai", "noimageai"),
        ("noindex", "noindex"),
        ("noimageindex", "noimageindex"),
        ("none", "none"),
        ("nofollow, noai", "noai"),
        ("max-snippet: 20, noindex", "noindex"),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", "noai"),
        ("*: noai", "noai"),
        ("safetune: noai", "noai"),
        ("SafeTune: nofollow, noimageai", "noimageai"),
        ("otherbot: noindex, safetune: noai", "noai"),
        ("", ""),
        ("all", ""),
        ("nofollow, noarchive", ""),
        ("otherbot: noai", ""),
        ("otherbot: nofollow, noindex", ""),
        ("safetune: nofollow, otherbot: noai", ""),
        ("max-image-preview: none", ""),
    ],
)
def test_robots_tag(value: str, found: str) -> None:
    assert refusal([value], [], "safetune") == (f"x-robots-tag: {found}" if found else "")


def test_any_of_several_headers() -> None:
    assert refusal(["nofollow", "noai"], [], "safetune") == "x-robots-tag: noai"
    # A robot's name holds to the end of its own header.
    assert refusal(["otherbot: nofollow", "noindex"], [], "safetune") == "x-robots-tag: noindex"


def test_tdm_reservation() -> None:
    assert refusal([], ["1"], "safetune") == "tdm-reservation: 1"
    assert refusal([], [" 1 "], "safetune") == "tdm-reservation: 1"
    assert refusal([], ["0"], "safetune") == ""
