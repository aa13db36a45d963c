"""Whether a server asks not to use a file for machine learning: X-Robots-Tag and tdm-reservation."""

from collections.abc import Iterable

REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that keep us off; `none` stands for noindex, nofollow."""
WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that are followed by a colon, as a robot's name is."""


def refusal(robots_tags: Iterable[str], tdm_reservations: Iterable[str], agent: str) -> str:
    """The header that keeps the robot `agent` off, or "" when none does.

    `robots_tags` and `tdm_reservations` are the values of all headers of those names. A directive after a
    robot's name ("somebot: noai, noindex") is for that robot alone, one without a name for all.
    """
    if any(value.strip() == "1" for value in tdm_reservations):
        return "tdm-reservation: 1"
    for value in robots_tags:
        named = "*"
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            directive = part
            if colon and name.strip() not in WITH_VALUE:
                named, directive = name.strip(), rest
            if directive.strip() in REFUSALS and named in ("*", agent.lower()):
                return f"x-robots-tag: {directive.strip()}"
    return ""
