"""TinySD's world: emoji scenes whose picture, caption, safe rewriting and truth are all known.

A scene is a subject, an object that is held, lying or absent, a place and a drawing style. Some objects are
harmful. Every random choice is an argument: the same scene always gives the same picture and caption.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from safetune.tinysd.vocabulary import (
    CATEGORY_OF,
    HARMFUL_KEYS,
    HARMFUL_OBJECTS,
    OBJECT_BY_KEY,
    PLACE_BY_KEY,
    PLACES,
    SAFE_OBJECTS,
    STYLE_BY_KEY,
    STYLES,
    SUBJECTS,
    TEMPLATES,
    Thing,
)

Split = Literal["seen", "heldout_names", "heldout_pairs", "all"]

IMAGE_SIZE = 64
SPRITE_SIZE = 48
SPRITES_DIR = Path(__file__).parent / "sprites"
SCENERY = ("palm-tree", "evergreen-tree", "cactus", "ringed-planet", "tropical-fish")
HELDOUT_SUBJECTS_PER_OBJECT = 3


@dataclass(frozen=True)
class Scene:
    """One scene; fields hold vocabulary keys and the words chosen for its caption."""

    subject: str
    object: str
    """Object key, or "" when the pose is absent."""
    pose: Literal["held", "lying", "absent"]
    place: str
    style: str
    template: int
    object_name: str
    place_name: str
    style_name: str
    seed: int
    """Seed of the layout's jitter; captions do not depend on it."""

    @property
    def harmful(self) -> bool:
        return self.object in HARMFUL_KEYS

    @property
    def category(self) -> str | None:
        return CATEGORY_OF.get(self.object)

    @property
    def caption(self) -> str:
        template = TEMPLATES[self.pose][self.template]
        text = template.format(s=self.subject, o=self.object_name, p=self.place_name, d=self.style_name)
        return fix_articles(text)

    @property
    def safe_caption(self) -> str:
        """The safe rewriting s(c): the harmful object dropped, all else kept; s(c) = c when clean."""
        return without_object(self).caption if self.harmful else self.caption


def without_object(scene: Scene) -> Scene:
    """The same scene with nothing in hand or on the ground."""
    return replace(scene, object="", object_name="", pose="absent")


@cache
def heldout_pairs() -> frozenset[tuple[str, str]]:
    """(subject, harmful object) pairs that HGR's training and the labelled pool never see; fixed by seed."""
    rng = np.random.default_rng(20241216)
    pairs: set[tuple[str, str]] = set()
    for thing in HARMFUL_OBJECTS:
        chosen = rng.choice(len(SUBJECTS), HELDOUT_SUBJECTS_PER_OBJECT, replace=False)
        pairs.update((SUBJECTS[i].key, thing.key) for i in chosen)
    return frozenset(pairs)


def sample_scene(
    rng: np.random.Generator, harmful: bool, split: Split = "all", harm: Thing | None = None
) -> Scene:
    """Draw a scene. Clean scenes are alike in every split; `all` mixes the harmful splits.

    A harmful scene shows the object `harm`, without it any of them.
    """
    if not harmful:
        pose = str(rng.choice(["held", "lying", "absent"], p=[0.45, 0.3, 0.25]))
        thing = SAFE_OBJECTS[rng.integers(len(SAFE_OBJECTS))] if pose != "absent" else None
        subject, name = _pick(rng, [s.key for s in SUBJECTS]), _pick(rng, thing.names) if thing else ""
    else:
        pose = str(rng.choice(["held", "lying"], p=[0.6, 0.4]))
        thing = harm or HARMFUL_OBJECTS[rng.integers(len(HARMFUL_OBJECTS))]
        held_out = [s.key for s in SUBJECTS if (s.key, thing.key) in heldout_pairs()]
        seen = [s.key for s in SUBJECTS if (s.key, thing.key) not in heldout_pairs()]
        subject = _pick(rng, {"heldout_pairs": held_out, "all": seen + held_out}.get(split, seen))
        name = _pick(
            rng, {"heldout_names": thing.names[-1:], "all": thing.names}.get(split, thing.names[:-1])
        )
    place, style = PLACES[rng.integers(len(PLACES))], STYLES[rng.integers(len(STYLES))]
    return Scene(
        subject=subject,
        object=thing.key if thing else "",
        pose=pose,  # type: ignore[arg-type]
        place=place.key,
        style=style.key,
        template=int(rng.integers(len(TEMPLATES[pose]))),
        object_name=name,
        place_name=_pick(rng, place.names),
        style_name=_pick(rng, style.names),
        seed=int(rng.integers(2**31)),
    )


def clean_twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a safe object in the place of its own: same subject, place, pose, template and style.

    Raises ValueError for a scene without an object.
    """
    if scene.pose == "absent":
        raise ValueError("this scene has no object to replace: give one whose pose is held or lying")
    thing = SAFE_OBJECTS[rng.integers(len(SAFE_OBJECTS))]
    return replace(scene, object=thing.key, object_name=_pick(rng, thing.names))


def recaption(scene: Scene, rng: np.random.Generator, heldout_names: bool = False) -> Scene:
    """Other words for the same picture: names and template drawn anew; held-out names where asked for."""
    thing = OBJECT_BY_KEY.get(scene.object)
    names = () if thing is None else thing.names
    if thing is not None and thing.harmful and not heldout_names:
        names = names[:-1]
    return replace(
        scene,
        template=int(rng.integers(len(TEMPLATES[scene.pose]))),
        object_name=_pick(rng, names) if names else "",
        place_name=_pick(rng, PLACE_BY_KEY[scene.place].names),
        style_name=_pick(rng, STYLE_BY_KEY[scene.style].names),
    )


def _pick(rng: np.random.Generator, options: list[str] | tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def fix_articles(text: str) -> str:
    """Write "an" before a vowel's sound."""
    words = text.split(" ")
    for i, (word, following) in enumerate(pairwise(words)):
        if word == "a" and following[0] in "aeiou" and not following.startswith("un"):
            words[i] = "an"
    return " ".join(words)


# ---- rendering ----


@cache
def _sprites(style: str) -> dict[str, Image.Image]:
    keys = json.loads((SPRITES_DIR / "index.json").read_text())["keys"]
    sheet = Image.open(SPRITES_DIR / f"{style}.png").convert("RGBA")
    size = SPRITE_SIZE
    return {key: sheet.crop((i * size, 0, (i + 1) * size, size)) for i, key in enumerate(keys)}


def sprite(style: str, key: str, size: int) -> Image.Image:
    """One sprite of a drawing style as a square RGBA picture of `size` pixels."""
    return _sprites(style)[key].resize((size, size), Image.Resampling.LANCZOS)


def render(scene: Scene) -> Image.Image:
    """Draw the scene as a 64 by 64 RGB picture."""
    rng = np.random.default_rng(scene.seed)
    picture = _draw_place(scene.place, scene.style, rng)
    side, x, y = int(rng.integers(35, 40)), int(rng.integers(1, 6)), int(rng.integers(14, 22))
    _paste(picture, sprite(scene.style, scene.subject, side), x, y)
    if scene.pose != "absent":
        size = int(rng.integers(27, 31))
        left = int(rng.integers(31, 64 - size))
        top = int(rng.integers(14, 22)) if scene.pose == "held" else int(rng.integers(33, 64 - size))
        _paste(picture, sprite(scene.style, scene.object, size), left, top)
    return picture


def _paste(picture: Image.Image, piece: Image.Image, x: int, y: int) -> None:
    picture.paste(piece, (x, y), piece)


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator, spread: int = 10) -> tuple[int, int, int]:
    values = np.clip(np.array(colour) + rng.integers(-spread, spread + 1), 0, 255)
    return int(values[0]), int(values[1]), int(values[2])


# Per place: colour of the top, of the bottom, and of the ground; height of the horizon in pixels.
_PLACE_COLOURS = {
    "beach": ((130, 205, 250), (190, 230, 250), (240, 215, 150), 40),
    "forest": ((110, 160, 110), (70, 130, 80), (60, 95, 45), 44),
    "city": ((170, 175, 190), (205, 205, 210), (85, 85, 95), 48),
    "desert": ((250, 190, 110), (255, 220, 160), (215, 150, 75), 38),
    "snow": ((195, 215, 235), (225, 235, 245), (248, 250, 255), 38),
    "space": ((12, 10, 35), (35, 20, 70), (35, 20, 70), 64),
    "underwater": ((40, 130, 190), (10, 60, 120), (15, 70, 115), 54),
    "kitchen": ((235, 225, 205), (225, 210, 185), (150, 95, 55), 46),
}


def _draw_place(place: str, style: str, rng: np.random.Generator) -> Image.Image:
    """The background: a sky, a ground and a little scenery; flat styles have no gradient."""
    top, bottom, ground, horizon = _PLACE_COLOURS[place]
    top, bottom, ground = _jitter(top, rng), _jitter(bottom, rng), _jitter(ground, rng)
    horizon += int(rng.integers(-2, 3))
    ramp = np.linspace(0, 1, IMAGE_SIZE)[:, None] if style == "cartoon" else np.full((IMAGE_SIZE, 1), 0.5)
    rows = (np.array(top) * (1 - ramp) + np.array(bottom) * ramp)[:, None, :]
    picture = Image.fromarray(np.broadcast_to(rows, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    if place == "city":
        for x in range(0, IMAGE_SIZE, 13):
            height = int(rng.integers(22, 42))
            draw.rectangle((x, horizon - height, x + 10, horizon), fill=_jitter((110, 115, 135), rng, 15))
            for window in range(horizon - height + 3, horizon - 2, 6):
                draw.rectangle((x + 3, window, x + 7, window + 2), fill=(250, 225, 130))
    if place == "beach":
        draw.rectangle((0, horizon - 10, IMAGE_SIZE, horizon), fill=_jitter((40, 140, 200), rng))
    if place == "kitchen":
        for line in range(0, IMAGE_SIZE, 9):
            draw.line((0, line, IMAGE_SIZE, line), fill=(200, 185, 160))
            draw.line((line, 0, line, IMAGE_SIZE), fill=(200, 185, 160))
    if horizon < IMAGE_SIZE:
        draw.rectangle((0, horizon, IMAGE_SIZE, IMAGE_SIZE), fill=ground)
    if place in ("space", "snow", "underwater"):
        colour = (170, 215, 240) if place == "underwater" else (255, 255, 255)
        for x, y in rng.integers(0, IMAGE_SIZE - 2, size=(22, 2)):
            size = 1 if place == "space" else 2
            draw.ellipse((int(x), int(y), int(x) + size, int(y) + size), fill=colour)
    scenery = {
        "beach": "palm-tree",
        "forest": "evergreen-tree",
        "desert": "cactus",
        "snow": "evergreen-tree",
        "space": "ringed-planet",
        "underwater": "tropical-fish",
    }.get(place)
    for x in (int(rng.integers(0, 8)), int(rng.integers(38, 48))) if scenery else ():
        size = int(rng.integers(14, 19))
        y = 2 if place in ("space", "underwater") else max(0, horizon - size)
        y = int(rng.integers(0, 5)) if y == 2 else y - int(rng.integers(14, 20)) if place == "forest" else y
        _paste(picture, sprite(style, scenery or "", size), x, max(0, y))
    return picture
