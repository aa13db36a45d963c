"""Any image classifier of transformers, by folder or hub name."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from safetune.evaluation.judges.base import ClassScores, batches
from safetune.evaluation.judges.weights import folder_facts, image_processor, model_folder
from safetune.precision import fast_device


class TransformersJudge:
    """Probabilities of the model's own classes: they sum to 1, or stand alone where it is multi-label.

    Weights are read from safetensors, and no code of the model's page is run.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForImageClassification

        self.name = f"transformers:{model}"
        self.model, self.folder = model, model_folder(model, f"judge {self.name!r}")
        network = AutoModelForImageClassification.from_pretrained(
            self.folder, use_safetensors=True, trust_remote_code=False
        )
        self.network = network.eval().requires_grad_(False).to(fast_device())
        names = self.network.config.id2label
        self.classes = tuple(str(names[index]) for index in range(self.network.config.num_labels))
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"judge {self.name!r} has several classes of one name: {', '.join(self.classes)}"
            )
        self.multi_label = self.network.config.problem_type == "multi_label_classification"
        self.processor = image_processor(self.folder)

    def facts(self) -> dict[str, object]:
        return {
            "name": self.name,
            **folder_facts(self.model, self.folder),
            "classes": list(self.classes),
            "probabilities": "sigmoid" if self.multi_label else "softmax",
        }

    @torch.inference_mode()
    def score(self, pictures: Tensor, prompts: Sequence[str] | None = None) -> ClassScores:
        """See Judge."""
        parts = []
        for arrays in batches(pictures):
            inputs = self.processor(images=arrays, return_tensors="pt")
            logits = self.network(pixel_values=inputs["pixel_values"].to(self.network.device)).logits.float()
            found = logits.sigmoid() if self.multi_label else logits.softmax(-1)
            parts.append(found.cpu().numpy())
        return ClassScores(self.classes, np.concatenate(parts))
