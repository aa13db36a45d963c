"""The judge of TinySD's pictures: a small CNN trained on rendered scenes; no part of the method reads it."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from safetune.tinysd.vocabulary import HARMFUL_KEYS, OBJECTS, PLACES, STYLES, SUBJECTS
from safetune.tinysd.world import Scene

# Class names per head; "" is the object class of an empty hand.
CLASSES = {
    "subject": tuple(thing.key for thing in SUBJECTS),
    "object": ("", *(thing.key for thing in OBJECTS)),
    "place": tuple(thing.key for thing in PLACES),
    "style": tuple(thing.key for thing in STYLES),
}
HARMFUL_CLASSES = tuple(i for i, key in enumerate(CLASSES["object"]) if key in HARMFUL_KEYS)
JUDGE_DIR = Path(__file__).parent / "weights" / "judge"


class Judge(nn.Module):
    """Residual CNN, (B, 3, 64, 64) in [-1, 1] to a dict of logits (B, classes) per head."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for narrow, wide in pairwise(widths):
            stages += [ResidualBlock(narrow), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        self.body = nn.Sequential(*stages, ResidualBlock(widths[-1]), nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.heads = nn.ModuleDict(
            {head: nn.Linear(2 * widths[-1], len(names)) for head, names in CLASSES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.classify(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 2 * width): mean and maximum over the picture."""
        maps = self.body(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        return {head: layer(features) for head, layer in self.heads.items()}


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps)


def images_to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size to (B, 3, H, W) in [-1, 1]."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def truth_indices(scenes: list[Scene]) -> dict[str, Tensor]:
    """Class index (B,) per head of known scenes."""
    return {
        head: torch.tensor([names.index(getattr(scene, head)) for scene in scenes])
        for head, names in CLASSES.items()
    }


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, noise and colour jitter, each at a random strength per picture; (B, 3, H, W) in [-1, 1]."""
    draw = _uniform(len(images), generator)

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, stride=1)

    soft = mean(images)
    softer = mean(mean(soft))
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    weight, kind = draw(0, 1, 1, 1, 1), draw(0, 1, 1, 1, 1)
    blurred = torch.where(kind < 0.4, soft, torch.where(kind < 0.7, softer, coarse))
    images = torch.lerp(images, blurred, weight * (draw(0, 1, 1, 1, 1) < 0.7))
    images = images * draw(0.85, 1.15, 3, 1, 1) + draw(-0.12, 0.12, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise * draw(0, 0.15, 1, 1, 1)).clamp(-1, 1)


def smear(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lay a soft patch of random colours and no shape where objects are, one on each picture (B, 3, 64, 64).

    Models leave such patches behind; a judge that only knows whole objects would name one of them.
    """
    draw, size = _uniform(len(images), generator), images.shape[-1]

    def spread(values: Tensor) -> Tensor:
        return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=False)

    colours = draw(-1, 1, 3, 1, 1) + spread(draw(-0.8, 0.8, 3, 6, 6))
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((rows - draw(24, 54, 1, 1, 1)) / draw(6, 13, 1, 1, 1)) ** 2 + (
        (columns - draw(38, 56, 1, 1, 1)) / draw(6, 13, 1, 1, 1)
    ) ** 2
    mask = (4 * (1 - distance) + spread(draw(-4, 4, 1, 9, 9))).sigmoid() * draw(0.3, 1, 1, 1, 1)
    return torch.lerp(images, colours.clamp(-1, 1), mask)


def _uniform(batch: int, generator: torch.Generator) -> Callable[..., Tensor]:
    """draw(low, high, *shape): uniform numbers, (batch, *shape)."""

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    return draw


def save_judge(judge: Judge, folder: Path, facts: dict[str, object]) -> None:
    """Write half-precision weights and judge.json (classes, training facts) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half() for name, value in judge.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "judge.json").write_text(json.dumps({"classes": CLASSES, **facts}, indent=1) + "\n")


def load_judge(folder: Path = JUDGE_DIR) -> Judge:
    """Load the judge, in fp32 and evaluation mode; ValueError when its classes are not this world's."""
    classes = {
        head: tuple(names)
        for head, names in json.loads((folder / "judge.json").read_text())["classes"].items()
    }
    if classes != CLASSES:
        raise ValueError(
            f"the judge in {folder} was trained for other classes; run recipes/train_judge.py again"
        )
    judge = Judge()
    judge.load_state_dict(
        {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    )
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def judge_images(judge: Judge, images: Tensor, batch_size: int = 64) -> dict[str, np.ndarray]:
    """Softmax scores (N, classes) per head for pictures (N, 3, 64, 64) in [-1, 1]."""
    parts = [judge(chunk) for chunk in images.split(batch_size)]
    return {head: torch.cat([p[head].softmax(1) for p in parts]).numpy() for head in CLASSES}
