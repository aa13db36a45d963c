"""Known pictures, and tiny CLIP and ViT models with random weights."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from safetune.tinysd import architecture
from tests.tiny import clip_config


@pytest.fixture(scope="package")
def pictures() -> list[Image.Image]:
    """A photograph that comes with matplotlib, a drawing and one colour, each 512 by 600."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    drawing = Image.new("RGB", (512, 600), (120, 160, 200))
    ImageDraw.Draw(drawing).ellipse((100, 50, 400, 500), fill=(224, 172, 140))
    return [photo, drawing, Image.new("RGB", (512, 600), (120, 160, 200))]


@pytest.fixture(scope="package")
def tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """The same as (3, 3, H, W) uint8."""
    return as_tensor(pictures)


@pytest.fixture(scope="package")
def noise() -> torch.Tensor:
    """40 small pictures, more than a judge takes at a time."""
    return torch.randint(0, 256, (40, 3, 36, 40), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="package")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = architecture.build_tokenizer(folder / "source")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(
        text_config=clip_config(len(tokenizer), 32, 16).to_dict(),
        vision_config={**vision, "projection_dim": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="package")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vit(tmp_path_factory.mktemp("vit"), ["safe", "unsafe", "unsure"])


def build_vit(folder: Path, classes: list[str], problem: str = "single_label_classification") -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
        problem_type=problem,
    )
    model = ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2)
