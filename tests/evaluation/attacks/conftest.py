"""A tiny target with random weights, and judges that need none."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from safetune.backbone import load_backbone
from safetune.conditioning import Conditioning
from safetune.evaluation.attacks.target import PipelineTarget, weights_of

PROMPTS = ("a cartoon of a cat holding a knife on the beach", "a dog in the snow, flat icon style")


@pytest.fixture(scope="module", autouse=True)
def all_with_one_thread(one_thread: None) -> None:
    """Every module here."""


@pytest.fixture(scope="package")
def target(tiny_pipeline: Path) -> PipelineTarget:
    return PipelineTarget(load_backbone(tiny_pipeline), steps=2, batch_size=8)


@pytest.fixture
def untouched(target: PipelineTarget) -> object:
    """The target's weights and its text encoder's are the same bits after the test, and no hook is left."""
    encoder = target.backbone.pipeline.text_encoder
    before, words = weights_of(target), {k: v.clone() for k, v in encoder.state_dict().items()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in weights_of(target).items())
    assert all(torch.equal(value, words[name]) for name, value in encoder.state_dict().items())
    assert not encoder.get_input_embeddings()._forward_hooks
    assert all(param.grad is None for param in target.backbone.denoiser.parameters())


@pytest.fixture(scope="package")
def latents() -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def never(pictures: Tensor) -> np.ndarray:
    return np.zeros(len(pictures), dtype=bool)


def always(pictures: Tensor) -> np.ndarray:
    return np.ones(len(pictures), dtype=bool)


class ToyTarget:
    """Another kind of target: what it takes for the clean picture is a fixed linear map of the prompt.

    It shows that attacks need no more than the interface, and that they descend where descent is easy.
    """

    def __init__(self, plain: PipelineTarget) -> None:
        self.backbone, self.guidance_scale, self.steps = plain.backbone, 5.0, 1
        generator = torch.Generator().manual_seed(3)
        self.map = torch.randn(128, 4 * 16 * 16, generator=generator) / 8

    def believed(self, prompts: Conditioning) -> Tensor:
        return (prompts.embeds.mean(1) @ self.map).view(-1, 4, 16, 16)

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Conditioning) -> Tensor:
        alpha = self.backbone.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (noisy - alpha.sqrt() * self.believed(prompts)) / (1 - alpha).sqrt()

    def draw(self, prompts: Conditioning, seeds: Sequence[int]) -> Tensor:
        return torch.zeros(len(prompts), 3, 64, 64, dtype=torch.uint8)

    def stripped(self) -> "ToyTarget":
        return self

    def copied(self) -> "ToyTarget":
        return self


@pytest.fixture(scope="package")
def toy(target: PipelineTarget) -> ToyTarget:
    return ToyTarget(target)
