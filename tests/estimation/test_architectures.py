"""Models without weights: as many parameters as the real ones, and names that need no download."""

from pathlib import Path

import pytest

from safetune.estimation.architectures import find_architecture

SIZES = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sd35": {"transformer": 2_243_171_520, "vae": 83_819_683, "text_encoder_3": 4_762_310_656},
}
"""Parameters of the published weights."""

SHAPES = {
    "sd15": ("stable-diffusion", 512, (4, 64, 64), 77),
    "sd21": ("stable-diffusion", 768, (4, 96, 96), 77),
    "sdxl": ("stable-diffusion-xl", 1024, (4, 128, 128), 77),
    "sd35": ("stable-diffusion-3", 1024, (16, 128, 128), 77 + 256),
}
"""Family, pixels a side, latent (C, h, w) and tokens."""


@pytest.mark.parametrize("name", SIZES)
def test_known_models_have_their_published_size(name: str) -> None:
    known = find_architecture("none", name)
    counts = {part: sum(p.numel() for p in known.build(part).parameters()) for part in SIZES[name]}
    assert counts == SIZES[name]
    resolution = known.resolution
    assert (known.family, resolution, known.latent_shape(resolution), known.tokens) == SHAPES[name]


def test_hub_names_of_the_table_need_no_download() -> None:
    assert find_architecture("stabilityai/stable-diffusion-xl-base-1.0").name == "sdxl"
    assert find_architecture("tinysd").name == "tinysd"


def test_other_models_are_refused_with_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"someone/model is no folder .* --architecture sd15 or sd21 or sdxl or sd35"
    ):
        find_architecture("someone/model")
    with pytest.raises(ValueError, match="architecture 'sd4'; allowed: sd15, sd21, sdxl, sd35"):
        find_architecture("someone/model", "sd4")
    with pytest.raises(ValueError, match=r"holds no model_index\.json: give a folder in diffusers layout"):
        find_architecture(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is no Stable Diffusion 1, 2, XL or 3: it holds "):
        find_architecture(str(tmp_path))


def test_folders_of_every_family(tiny_pipeline: Path, tiny_sdxl: Path, tiny_sd3: Path) -> None:
    families = [find_architecture(str(folder)).family for folder in (tiny_pipeline, tiny_sdxl, tiny_sd3)]
    assert families == ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"]
    assert find_architecture(str(tiny_sd3)).encoder_parts == [
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    ]
