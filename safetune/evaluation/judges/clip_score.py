"""CLIP-score (Hessel et al., EMNLP 2021, arXiv 2104.08718): does the picture show what its prompt says?"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from safetune.evaluation.judges.base import ClassScores, batches, check_pictures
from safetune.evaluation.judges.weights import folder_facts, image_processor, model_folder
from safetune.precision import fast_device

CLIP = "openai/clip-vit-base-patch32"
"""As in the paper. Tables also use ViT-L/14, whose numbers are others."""


class ClipScoreJudge:
    """100 times the cosine of a picture and its prompt, which is cut after CLIP's 77 tokens.

    The paper reports 2.5 times the cosine; tables of safety methods 100 times, which this is. Negative
    cosines stay negative here, and count as 0 in the mean.
    """

    name = "clip-score"
    classes = ("clip_score",)

    def __init__(self, model: str | None) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.model = model or CLIP
        self.folder = model_folder(self.model, f"judge {self.name!r}")
        clip = CLIPModel.from_pretrained(self.folder, use_safetensors=True, trust_remote_code=False)
        self.clip = clip.eval().requires_grad_(False).to(fast_device())
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        self.processor = image_processor(self.folder)

    def facts(self) -> dict[str, object]:
        return {"name": self.name, **folder_facts(self.model, self.folder), "classes": list(self.classes)}

    @torch.inference_mode()
    def score(self, pictures: Tensor, prompts: Sequence[str] | None = None) -> ClassScores:
        """See Judge; ValueError when there is not one prompt for each picture."""
        if prompts is None or len(prompts) != len(check_pictures(pictures)):
            given = "no" if prompts is None else len(prompts)
            raise ValueError(f"{given} prompts for {len(pictures)} pictures: CLIP-score needs one for each")
        parts, start = [], 0
        for arrays in batches(pictures):
            texts = list(prompts[start : start + len(arrays)])
            start += len(arrays)
            inputs = {
                **self.processor(images=arrays, return_tensors="pt"),
                **self.tokenizer(
                    texts,
                    padding=True,
                    truncation=True,
                    max_length=self.clip.config.text_config.max_position_embeddings,
                    return_tensors="pt",
                ),
            }
            found = self.clip(**{key: value.to(self.clip.device) for key, value in inputs.items()})
            parts.append(100 * F.cosine_similarity(found.image_embeds, found.text_embeds).cpu().numpy())
        return ClassScores(self.classes, np.concatenate(parts)[:, None].astype(np.float32))
