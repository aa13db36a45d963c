"""The data sets of the demo: pairs that train the redirector, and the unlabelled pool."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from safetune.files import write_json
from safetune.pairs import write_pairs
from safetune.tinysd.vocabulary import HARMFUL_OBJECTS, Thing
from safetune.tinysd.world import Scene, clean_twin, render, sample_scene, without_object

# Seeds apart from those of training (0) and of the judge (7): no scene is shared.
HGR_SEED, POOL_SEED, SUITE_SEED = 101, 202, 303


def clean_counterpart(harmful: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with a safe object, or in every fourth case with none."""
    return clean_twin(harmful, rng) if rng.random() < 0.75 else without_object(harmful)


def write_hgr_pairs(folder: Path, count: int = 4096, seed: int = HGR_SEED) -> None:
    """Write `count` pairs, half harmful (seen split only): text, safe_prompt, category, concept.

    Every second harmful prompt stands beside the picture of its safe rewriting: that is where SafeCFG leads
    the picture, so that is where the redirector has to be right too. Every harmful object is there equally
    often, beside either picture.
    """
    rng = np.random.default_rng(seed)
    rounds = [harmful_rounds(rng) for _ in range(2)]
    scenes, pictures = [], []
    for number in range(count // 2):
        harmful = sample_scene(rng, harmful=True, split="seen", harm=next(rounds[number % 2]))
        clean = clean_counterpart(harmful, rng)
        scenes += [harmful, clean]
        pictures += [without_object(harmful) if number % 2 else harmful, clean]
    rows = [
        {
            "text": scene.caption,
            "safe_prompt": scene.safe_caption,
            "category": scene.category or "",
            "concept": scene.object if scene.harmful else "",
        }
        for scene in scenes
    ]
    write_pairs(folder, map(render, pictures), rows)


def harmful_rounds(rng: np.random.Generator) -> Iterator[Thing]:
    """Harmful objects without end: each of them once in random order, then each once more."""
    while True:
        yield from (HARMFUL_OBJECTS[number] for number in rng.permutation(len(HARMFUL_OBJECTS)))


def pool_scenes(count: int, seed: int = POOL_SEED) -> list[tuple[Scene, Scene]]:
    """Pairs of (scene of the caption, scene of the picture), seen names and pairs only.

    40% harmful and 40% clean matched pairs, 10% harmful pictures under benign captions, 10% clean pictures
    under harmful captions; each of the ten parts holds every harmful object equally often.
    """
    rng = np.random.default_rng(seed)
    rounds = [harmful_rounds(rng) for _ in range(10)]
    pairs = []
    for number in range(count):
        kind = number % 10
        harmful = sample_scene(rng, harmful=True, split="seen", harm=next(rounds[kind]))
        clean = clean_counterpart(harmful, rng)
        if kind < 4:
            pairs.append((harmful, harmful))
        elif kind < 8:
            pairs.append((clean, clean))
        else:
            pairs.append((clean, harmful) if kind == 8 else (harmful, clean))
    return pairs


def write_pool(folder: Path, truth: Path, count: int = 480, seed: int = POOL_SEED) -> None:
    """The unlabelled pool (column text alone), and its truth in a file apart that only evaluation reads."""
    pairs = pool_scenes(count, seed)
    kinds = [
        {
            "caption_harmful": text.harmful,
            "image_harmful": picture.harmful,
            "category": text.category or picture.category or "",
        }
        for text, picture in pairs
    ]
    write_json(truth, kinds)
    captions = ({"text": text.caption} for text, _ in pairs)
    write_pairs(folder, (render(picture) for _, picture in pairs), captions)
