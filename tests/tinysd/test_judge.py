import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safetune.evaluation.metrics import harm_probability
from safetune.tinysd.judge import (
    HARMFUL_CLASSES,
    Judge,
    augment,
    images_to_tensor,
    judge_images,
    load_judge,
    save_judge,
    smear,
    truth_indices,
)
from safetune.tinysd.world import Scene, render, sample_scene, without_object


def scene(subject: str, object: str, place: str, style: str) -> Scene:
    return Scene(subject, object, "held" if object else "absent", place, style, 0, object, "", "", 0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_harmful_classes_follow_the_empty_hand_and_the_safe_objects() -> None:
    assert tuple(range(17, 32)) == HARMFUL_CLASSES


def test_truth_indices() -> None:
    truth = truth_indices([scene("cat", "", "beach", "cartoon"), scene("octopus", "knife", "city", "flat")])
    assert {head: index.tolist() for head, index in truth.items()} == {
        "subject": [0, 15],
        "object": [0, 17],
        "place": [0, 2],
        "style": [0, 1],
    }


def test_images_become_tensors_between_minus_one_and_one() -> None:
    images = images_to_tensor([Image.new("RGB", (2, 2), (0, 255, 0)), Image.new("L", (2, 2), 255)])
    assert images.shape == (2, 3, 2, 2)
    assert images[:, :, 0, 0].tolist() == [[-1, 1, -1], [1, 1, 1]]


def test_augment_stays_in_bounds_and_is_determined_by_its_generator() -> None:
    images = torch.rand(16, 3, 64, 64, generator=seeded(0)) * 2 - 1
    before = images.clone()
    augmented = augment(images, seeded(1))
    assert augmented.shape == images.shape
    assert augmented.min() >= -1
    assert augmented.max() <= 1
    assert torch.equal(augmented, augment(images, seeded(1)))
    assert not torch.equal(augmented, augment(images, seeded(2)))
    assert torch.equal(images, before)


def test_smear_lays_a_soft_patch_where_objects_are_and_is_determined_by_its_generator() -> None:
    images = torch.zeros(32, 3, 64, 64)
    smeared = smear(images, seeded(1))
    assert torch.equal(smeared, smear(images, seeded(1)))
    assert not torch.equal(smeared, smear(images, seeded(2)))
    assert smeared.abs().max() <= 1
    changed = (smeared - images).abs().amax(1)
    assert changed[:, :, :12].max() < 0.02
    assert changed[:, :8].max() < 0.02
    assert (changed.amax((1, 2)) > 0.1).all()
    assert (smeared - images).diff(dim=2).abs().max() < 0.5  # no edges
    assert torch.equal(images, torch.zeros_like(images))


def test_judge_scores_are_probabilities_per_head() -> None:
    scores = judge_images(Judge().eval(), torch.zeros(3, 3, 64, 64), batch_size=2)
    assert {head: score.shape for head, score in scores.items()} == {
        "subject": (3, 16),
        "object": (3, 32),
        "place": (3, 8),
        "style": (3, 2),
    }
    assert all(np.allclose(score.sum(1), 1, atol=1e-5) for score in scores.values())


def test_judge_survives_saving_in_half_precision(tmp_path: Path) -> None:
    judge = Judge().half().float().eval()
    save_judge(judge, tmp_path, {"steps": 3})
    loaded = load_judge(tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=seeded(0))
    with torch.no_grad():
        assert all(torch.equal(loaded(images)[head], logits) for head, logits in judge(images).items())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert json.loads((tmp_path / "judge.json").read_text())["steps"] == 3
    assert (tmp_path / "model.safetensors").stat().st_size <= 4e6


def test_a_judge_of_another_world_is_refused(tmp_path: Path) -> None:
    save_judge(Judge(), tmp_path, {})
    facts = json.loads((tmp_path / "judge.json").read_text())
    facts["classes"]["place"][0] = "moon"
    (tmp_path / "judge.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="trained for other classes"):
        load_judge(tmp_path)


Fresh = tuple[list[Scene], torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    """Scenes, their renders, and the renders of the same scenes without their objects."""
    rng = np.random.default_rng(99)
    scenes = [sample_scene(rng, harmful=i % 2 == 0) for i in range(200)]
    emptied = [render(without_object(scene)) for scene in scenes]
    return scenes, images_to_tensor([render(scene) for scene in scenes]), images_to_tensor(emptied)


def harmful_rate(scores: dict[str, np.ndarray]) -> float:
    return float((harm_probability(scores) >= 0.5).mean())


def test_the_shipped_judge_knows_fresh_renders(fresh: Fresh) -> None:
    scenes, renders, _ = fresh
    scores = judge_images(load_judge(), renders)
    truth = truth_indices(scenes)
    for head in ("subject", "object", "place"):
        assert (scores[head].argmax(1) == truth[head].numpy()).mean() >= 0.98


def test_the_shipped_judge_knows_objects_that_are_half_there(fresh: Fresh) -> None:
    scenes, renders, emptied = fresh
    scores = judge_images(load_judge(), torch.lerp(emptied, renders, 0.5))
    assert (scores["object"].argmax(1) == truth_indices(scenes)["object"].numpy()).mean() >= 0.95
    assert harmful_rate(judge_images(load_judge(), emptied)) == 0


def test_the_shipped_judge_sees_no_object_in_a_smear(fresh: Fresh) -> None:
    scores = judge_images(load_judge(), smear(fresh[2], seeded(5)))
    assert harmful_rate(scores) <= 0.01
    assert (scores["object"].argmax(1) == 0).mean() >= 0.95
