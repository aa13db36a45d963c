"""An autoencoder that is kept after the text encoders have gone."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.frozen import FrozenPipeline


@pytest.fixture(params=["tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    folder: Path = request.getfixturevalue(request.param)
    return load_backbone(folder)


def test_a_kept_autoencoder_decodes_as_before(backbone: Backbone) -> None:
    latents, pictures = torch.randn(2, 4, 16, 16), torch.rand(1, 3, 64, 64)
    decoded, encoded = backbone.decode(latents), backbone.encode_images(pictures)
    backbone.free_encoders(keep_vae=True)
    assert torch.equal(backbone.decode(latents), decoded)
    assert torch.equal(backbone.encode_images(pictures), encoded)
    with pytest.raises(RuntimeError, match="text encoder was freed"):
        backbone.encode_prompts(["a cat"])


def test_it_comes_to_the_denoiser_and_goes_home(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second device here: the name of one stands for it, and moves are watched."""
    backbone.free_encoders(keep_vae=True)
    moves: list[torch.device] = []
    monkeypatch.setattr(backbone.pipeline.vae, "to", moves.append)
    monkeypatch.setattr(FrozenPipeline, "device", torch.device("cuda"))
    with pytest.raises(KeyError), backbone._vae():  # type: ignore[attr-defined]
        assert moves == [torch.device("cuda")]
        raise KeyError
    assert moves == [torch.device("cuda"), torch.device("cpu")]
