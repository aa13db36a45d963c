"""What attacks on TinySD's world need: its judge, scenes, pictures and concepts, apart from all training."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from safetune.backbone import Backbone
from safetune.evaluation.attacks.case import Case, TrainingPictures, picture_seeds
from safetune.evaluation.attacks.inversion import Concept
from safetune.evaluation.attacks.prompts import tinysd_paraphrases
from safetune.evaluation.attacks.report import Judge
from safetune.evaluation.attacks.tokens import PLACEHOLDER
from safetune.evaluation.suites import tinysd_suite
from safetune.finetuning.judging import harm_found
from safetune.tinysd.judge import images_to_tensor, load_judge
from safetune.tinysd.vocabulary import CATEGORIES, HARMFUL_OBJECTS
from safetune.tinysd.world import Scene, render, sample_scene

ATTACK_SEED = 404
"""Apart from the seeds of training, pool, suite and judge: no scene is shared."""
HARMFUL_CELLS = ("seen", "heldout_names", "heldout_pairs")
"""Cells of the suite whose prompts are attacked."""


def tinysd_judge() -> Judge:
    """TinySD's judge as attacks ask it."""
    judge = load_judge()
    return lambda pictures: harm_found(pictures, judge)


def attacked_scenes(count: int) -> list[Scene]:
    """`count` scenes of the suite's harmful cells, in turn: seen, held-out names, held-out pairs."""
    cells = [cell.scenes for cell in tinysd_suite(-(-count // 3), HARMFUL_CELLS).cells]
    return [scene for together in zip(*cells, strict=True) for scene in together][:count]


def training_scenes(count: int, harmful: bool) -> list[Scene]:
    """Scenes for an attacker to train on; harmful ones by any name, held-out ones included."""
    rng = np.random.default_rng([ATTACK_SEED, int(harmful)])
    return [sample_scene(rng, harmful) for _ in range(count)]


def latents_of(backbone: Backbone, scenes: Sequence[Scene]) -> Tensor:
    """Latents (N, C, h, w) of the rendered scenes."""
    return backbone.encode_images(images_to_tensor([render(scene) for scene in scenes])).float().cpu()


def tinysd_case(backbone: Backbone, count: int = 32, pictures: int = 64, seed: int = 0) -> Case:
    """`count` prompts of the suite's harmful cells, and `pictures` of each kind to train on."""
    scenes = attacked_scenes(count)
    training = {}
    for kind in ("harmful", "benign"):
        drawn = training_scenes(pictures, kind == "harmful")
        captions = tuple(scene.caption for scene in drawn)
        training[kind] = TrainingPictures(captions, latents_of(backbone, drawn))
    return Case(
        prompts=tuple(scene.caption for scene in scenes),
        latents=latents_of(backbone, scenes),
        seeds=picture_seeds(count, seed),
        paraphrases=tuple(
            tuple(tinysd_paraphrases(scene, 3, seed + row)) for row, scene in enumerate(scenes)
        ),
        concepts=tuple(tinysd_concepts(backbone)),
        training=training,
    )


def tinysd_concepts(backbone: Backbone, pictures: int = 16, drawn: int = 4, each: int = 1) -> list[Concept]:
    """`each` objects of every harmful category as concepts, learned from rendered scenes, drawn in others."""
    concepts = []
    for category in CATEGORIES:
        things = [thing for thing in HARMFUL_OBJECTS if thing.category == category]
        for thing in things[:each]:
            rng = np.random.default_rng([ATTACK_SEED, 2, HARMFUL_OBJECTS.index(thing)])
            scenes: list[Scene] = []
            while len(scenes) < pictures + drawn:
                scene = sample_scene(rng, harmful=True)
                if scene.object == thing.key:
                    scenes.append(scene)
            captions = tuple(with_placeholder(scene) for scene in scenes)
            concepts.append(
                Concept(
                    thing.names[0],
                    captions[:pictures],
                    latents_of(backbone, scenes[:pictures]),
                    captions[pictures:],
                )
            )
    return concepts


def with_placeholder(scene: Scene) -> str:
    """The scene's caption with the placeholder in the place of its object's name."""
    if not scene.object_name:
        raise ValueError("this scene has no object: give one whose pose is held or lying")
    before, _, after = scene.caption.rpartition(scene.object_name)
    return before + PLACEHOLDER + after
