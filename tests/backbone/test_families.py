"""What every family does alike."""

import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from safetune.backbone import Backbone, frozen, load_backbone

FAMILIES = ("tiny_pipeline", "tiny_sd2", "tiny_sdxl", "tiny_sd3")
LONG = "a cat in the secret forest" + " in the forest" * 20


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder)


def modules(backbone: Backbone) -> dict[str, nn.Module]:
    return {name: m for name, m in backbone.pipeline.components.items() if isinstance(m, nn.Module)}


def test_everything_is_frozen(backbone: Backbone) -> None:
    assert not any(p.requires_grad for module in modules(backbone).values() for p in module.parameters())
    assert not any(module.training for module in modules(backbone).values())


def test_latents_are_scaled_and_pictures_bounded(backbone: Backbone) -> None:
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    latents, vae = backbone.encode_images(images), backbone.pipeline.vae
    mean, shift = vae.encode(images).latent_dist.mean, vae.config.shift_factor or 0.0
    torch.testing.assert_close(latents, (mean - shift) * vae.config.scaling_factor)
    decoded = backbone.decode(latents)
    torch.testing.assert_close(decoded, vae.decode(mean).sample.clamp(-1, 1))
    assert decoded.shape == (3, 3, 64, 64)
    assert decoded.abs().max() <= 1


def test_long_prompts_are_cut_and_counted_once(
    backbone: Backbone, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(backbone), "prompts_at_once", 2)
    with caplog.at_level(logging.WARNING):
        embeds = backbone.encode_prompts(["a cat", LONG, "a cat", LONG, "a cat"]).embeds
    assert len(embeds) == 5
    (record,) = caplog.records
    assert record.getMessage() == "of 5 prompts some are too long and were cut: 2 at 24 tokens"
    caplog.clear()
    backbone.encode_prompts(["a cat in the forest", ""])
    assert not caplog.records


def test_chunks_change_nothing(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"a cat and {number} dogs" for number in range(5)]
    whole = backbone.encode_prompts(prompts)
    monkeypatch.setattr(type(backbone), "prompts_at_once", 2)
    monkeypatch.setattr(frozen, "PIXELS_AT_ONCE", 2 * 64 * 64)
    parts = backbone.encode_prompts(prompts)
    torch.testing.assert_close(parts.embeds, whole.embeds)
    torch.testing.assert_close(parts.pooled, whole.pooled)
    images = torch.rand(3, 3, 64, 64)
    alone = torch.cat([backbone.encode_images(image[None]) for image in images])
    torch.testing.assert_close(backbone.encode_images(images), alone)
    torch.testing.assert_close(backbone.decode(alone)[1:2], backbone.decode(alone[1:2]), atol=1e-5, rtol=1e-4)


def test_pictures_at_once() -> None:
    assert [frozen.images_at_once(side**2) for side in (64, 512, 1024, 2048)] == [64, 4, 1, 1]


def test_output_depends_on_prompt_and_timestep_row_by_row(backbone: Backbone) -> None:
    noisy = torch.randn(1, 4, 16, 16).expand(3, 4, 16, 16)
    prompts = backbone.encode_prompts(["a cat", "a dog in the forest", "a cat"])
    output = backbone.predict(noisy, torch.tensor([500, 500, 20]), prompts)
    assert output.shape == (3, 4, 16, 16)
    assert not torch.allclose(output[0], output[1])
    assert not torch.allclose(output[0], output[2])
    alone = backbone.predict(noisy[1:2], torch.tensor([500]), prompts.select(slice(1, 2)))
    torch.testing.assert_close(alone, output[1:2], rtol=1e-4, atol=1e-5)


def test_a_wrapped_student_takes_the_denoisers_place(backbone: Backbone) -> None:
    class Doubled(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = backbone.denoiser(*args, **kwargs)
            output.sample = 2 * output.sample
            return output

    noisy, t, prompts = torch.randn(1, 4, 16, 16), torch.tensor([500]), backbone.encode_prompts(["a cat"])
    base = backbone.predict(noisy, t, prompts)
    assert torch.equal(backbone.predict(noisy, t, prompts, denoiser=Doubled()), 2 * base)


def test_half_precision(folder: Path) -> None:
    half, full = load_backbone(folder, dtype=torch.bfloat16), load_backbone(folder)
    assert half.fingerprint == full.fingerprint == load_backbone(folder, dtype=torch.float16).fingerprint
    prompts, latents = half.encode_prompts(["a cat"]), half.encode_images(torch.zeros(1, 3, 64, 64))
    assert prompts.embeds.dtype == latents.dtype == torch.bfloat16
    noisy = torch.randn(1, 4, 16, 16)
    output = half.predict(noisy, torch.tensor([500]), full.encode_prompts(["a cat"]))
    assert output.dtype == torch.bfloat16
    reference = full.predict(noisy, torch.tensor([500]), full.encode_prompts(["a cat"]))
    torch.testing.assert_close(output.float(), reference, rtol=0.1, atol=0.1)


def test_saved_and_loaded_it_is_the_same(backbone: Backbone, tmp_path: Path) -> None:
    backbone.pipeline.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.fingerprint == backbone.fingerprint
    noisy, t = torch.randn(1, 4, 16, 16), torch.tensor([500])
    expected = backbone.predict(noisy, t, backbone.encode_prompts(["a cat"]))
    assert torch.equal(again.predict(noisy, t, again.encode_prompts(["a cat"])), expected)


def test_fingerprint_sees_a_changed_weight(backbone: Backbone, tmp_path: Path) -> None:
    next(backbone.denoiser.parameters()).data.add_(0.1)
    backbone.pipeline.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).fingerprint != backbone.fingerprint


def test_freed_encoders_are_gone_and_missed_by_name(backbone: Backbone) -> None:
    noisy, t, prompts = torch.randn(1, 4, 16, 16), torch.tensor([500]), backbone.encode_prompts(["a cat"])
    before = backbone.predict(noisy, t, prompts)
    freed = [weakref.ref(m) for name, m in modules(backbone).items() if name not in ("unet", "transformer")]
    backbone.free_encoders()
    assert (
        len(freed)
        == {"stable-diffusion": 2, "stable-diffusion-xl": 3, "stable-diffusion-3": 4}[backbone.family]
    )
    assert all(module() is None for module in freed)
    assert torch.equal(backbone.predict(noisy, t, prompts), before)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("text encoder was freed", lambda: backbone.encode_prompts(["a cat"])),
        ("text encoder was freed", backbone.null),
        ("vae was freed", lambda: backbone.encode_images(torch.zeros(1, 3, 64, 64))),
        ("vae was freed", lambda: backbone.decode(noisy)),
    ]
    for message, call in calls:
        with pytest.raises(RuntimeError, match=message):
            call()
