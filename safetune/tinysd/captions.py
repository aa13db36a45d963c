"""The way back from a caption of TinySD's world to the scene that it describes."""

import re
from functools import cache

from safetune.tinysd.vocabulary import (
    HARMFUL_KEYS,
    OBJECT_BY_KEY,
    OBJECTS,
    PLACES,
    STYLES,
    SUBJECTS,
    TEMPLATES,
)
from safetune.tinysd.world import Scene, heldout_pairs

PARTS = {"s": SUBJECTS, "o": OBJECTS, "p": PLACES, "d": STYLES}
"""What the letters in a template stand for."""


def parse_caption(text: str) -> Scene | None:
    """The scene of a caption, as Scene.caption writes it; None for any other text. Its seed is 0."""
    for pose, templates in TEMPLATES.items():
        for number, template in enumerate(templates):
            if found := _pattern(template).fullmatch(text):
                words = found.groupdict()
                keys = {part: _keys(part)[name] for part, name in words.items()}
                return Scene(
                    subject=keys["s"],
                    object=keys.get("o", ""),
                    pose=pose,  # type: ignore[arg-type]
                    place=keys["p"],
                    style=keys["d"],
                    template=number,
                    object_name=words.get("o", ""),
                    place_name=words["p"],
                    style_name=words["d"],
                    seed=0,
                )
    return None


def is_held_out(scene: Scene) -> bool:
    """True for a name or a pair that the evaluation's held-out cells ask for."""
    if scene.object not in HARMFUL_KEYS:
        return False
    is_name = scene.object_name == OBJECT_BY_KEY[scene.object].names[-1]
    return is_name or (scene.subject, scene.object) in heldout_pairs()


def _keys(part: str) -> dict[str, str]:
    """Key by name, of the things that a template's letter stands for."""
    return {name: thing.key for thing in PARTS[part] for name in thing.names}


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """The captions of a template, one group for each letter; an article may have been fixed."""
    pattern = re.escape(template).replace(r"a\ ", r"an?\ ")
    for part in PARTS:
        names = "|".join(map(re.escape, _keys(part)))
        pattern = pattern.replace(re.escape(f"{{{part}}}"), f"(?P<{part}>{names})")
    return re.compile(pattern)
