"""Buckets: SDXL's sizes, pictures scaled and cut to them, and the ids that tell the denoiser."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safetune.backbone import load_backbone
from safetune.finetuning.buckets import bucket_sizes, fit, nearest_size
from safetune.pairs import to_tensor


def test_sizes_are_those_of_sdxl() -> None:
    sizes = bucket_sizes(1024)
    assert (1024, 1024) in sizes and (832, 1216) in sizes and (1216, 832) in sizes and (512, 2048) in sizes
    assert len(sizes) == 17
    assert all(height % 64 == width % 64 == 0 for height, width in sizes)
    assert all(0.85 * 1024**2 < height * width <= 1024**2 for height, width in sizes)
    assert bucket_sizes(64) == [(64, 64)]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(500, 500, (256, 256)), (640, 480, (192, 320)), (100, 900, (512, 128)), (300, 280, (256, 256))],
)
def test_nearest_aspect_ratio(width: int, height: int, size: tuple[int, int]) -> None:
    assert nearest_size(Image.new("RGB", (width, height)), bucket_sizes(256)) == size


def test_scaled_to_cover_and_cut_on_both_sides() -> None:
    """160 x 80 pixels for 64 rows of 96 are scaled by 0.8 to 128 x 64, less 16 columns on each side."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[:, 16:144] = 255
    fitted, ids = fit(Image.fromarray(pixels), [(64, 96)])
    assert fitted.shape == (3, 64, 96) and (fitted == 1).all()
    assert ids.tolist() == [80, 160, 0, 16, 64, 96]
    upright, ids = fit(Image.fromarray(pixels.transpose(1, 0, 2)), [(96, 64)])
    assert torch.equal(upright, fitted.transpose(1, 2)) and ids.tolist() == [160, 80, 16, 0, 96, 64]


@pytest.mark.parametrize("size", [(64, 64), (97, 75), (40, 90)])
def test_one_square_is_what_other_commands_cut(size: tuple[int, int], rng: np.random.Generator) -> None:
    picture = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    assert torch.equal(fit(picture, [(64, 64)])[0], to_tensor(picture, 64))


def test_time_ids_reach_the_denoiser(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    seen = []
    forward = backbone.denoiser.forward

    def watch(*args: object, **options: dict[str, torch.Tensor]) -> object:
        seen.append(options["added_cond_kwargs"]["time_ids"])
        return forward(*args, **options)

    backbone.denoiser.forward = watch
    noisy, t = torch.randn(2, 4, 16, 24), torch.tensor([100, 800])
    prompts = backbone.encode_prompts(["a cat", "a dog"])
    ids = torch.tensor([[80, 160, 0, 16, 64, 96], [64, 96, 0, 0, 64, 96]])
    with torch.no_grad():
        plain = backbone.predict(noisy, t, prompts)
        told = backbone.predict(noisy, t, prompts, time_ids=ids)
    assert seen[0].tolist() == [[64, 96, 0, 0, 64, 96]] * 2 and seen[1].tolist() == ids.tolist()
    assert not torch.allclose(plain[0], told[0], atol=1e-5) and torch.equal(plain[1], told[1])
