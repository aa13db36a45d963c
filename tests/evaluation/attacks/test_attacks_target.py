"""The target: its pictures, its guidance as attacks see it, its copies and its weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from safetune.backbone import load_backbone
from safetune.evaluation.attacks.target import (
    PipelineTarget,
    load_target,
    negative_prompt,
    redirected,
    weights_of,
)
from safetune.evaluation.methods import Method
from safetune.export.adapters import attached_layers, save_adapter, save_denoiser
from safetune.finetuning.adapters import add_lora
from safetune.hgr import HGR

from .conftest import PROMPTS


def drifted_hgr(target: PipelineTarget) -> HGR:
    """An HGR that is not at its start, where delta is zero."""
    torch.manual_seed(0)
    hgr = HGR(text_width=128, max_tokens=24, base_fingerprint=target.backbone.fingerprint)
    torch.nn.init.normal_(hgr.project_out.weight, std=0.3)
    return hgr


def test_pictures_depend_on_their_seed_alone(target: PipelineTarget) -> None:
    prompts = target.backbone.encode_prompts(PROMPTS)
    together = target.draw(prompts, [1, 2])
    assert together.shape == (2, 3, 64, 64) and together.dtype == torch.uint8
    assert torch.equal(together, target.draw(prompts, [1, 2]))
    alone = target.draw(prompts.select(slice(1, 2)), [2])
    assert (alone.int() - together[1:].int()).abs().max() <= 1
    assert not torch.equal(together, target.draw(prompts, [1, 3]))
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        target.draw(prompts, [1])


def test_plain_guidance_is_attacked_by_the_conditional_output(
    target: PipelineTarget, latents: Tensor
) -> None:
    prompts, t = target.backbone.encode_prompts(PROMPTS), torch.tensor([100, 900])
    assert torch.equal(target.predict(latents, t, prompts), target.backbone.predict(latents, t, prompts))


def test_plain_cfg_on_what_is_predicted_is_the_targets_guidance(
    target: PipelineTarget, latents: Tensor
) -> None:
    """By null + w (predicted - null) = negative + w (conditional - negative), for any negative."""
    backbone, w, t = target.backbone, 5.0, torch.tensor([100, 900])
    prompts, null = backbone.encode_prompts(PROMPTS), backbone.null(2)
    for negative in (redirected(drifted_hgr(target)), negative_prompt(backbone, "a knife")):
        guided = PipelineTarget(backbone, negative, guidance_scale=w)
        eps, eps_null = backbone.predict(latents, t, prompts), backbone.predict(latents, t, null)
        eps_away = backbone.predict(latents, t, negative(prompts, null))
        assert not torch.allclose(eps_away, eps_null, atol=1e-5)
        seen = eps_null + w * (guided.predict(latents, t, prompts) - eps_null)
        assert torch.allclose(seen, eps_away + w * (eps - eps_away), atol=1e-5)


def test_gradients_pass_through_the_redirector(target: PipelineTarget, latents: Tensor) -> None:
    guided = PipelineTarget(target.backbone, redirected(drifted_hgr(target)))
    prompts = target.backbone.encode_prompts(PROMPTS)
    embeds = prompts.embeds.clone().requires_grad_()
    gradients = []
    for attacked in (target, guided):
        output = attacked.predict(latents, torch.tensor([500, 500]), type(prompts)(embeds))
        gradients.append(torch.autograd.grad(output.pow(2).sum(), embeds)[0])
    assert gradients[0].abs().sum() > 0 and not torch.allclose(gradients[0], gradients[1])


def test_stripping_leaves_the_weights_and_plain_guidance(target: PipelineTarget) -> None:
    guided = PipelineTarget(target.backbone, redirected(drifted_hgr(target)), steps=2)
    prompts = target.backbone.encode_prompts(PROMPTS)
    plain = target.draw(prompts, [1, 2])
    assert not torch.equal(guided.draw(prompts, [1, 2]), plain)
    assert torch.equal(guided.stripped().draw(prompts, [1, 2]), plain)


@pytest.mark.usefixtures("untouched")
def test_a_copy_has_weights_of_its_own(target: PipelineTarget) -> None:
    copied, prompts = target.copied(), target.backbone.encode_prompts(PROMPTS)
    before = target.draw(prompts, [1, 2])
    assert torch.equal(copied.draw(prompts, [1, 2]), before)
    with torch.no_grad():
        copied.backbone.denoiser.conv_in.weight.mul_(3)
    assert not torch.equal(copied.draw(prompts, [1, 2]), before)
    assert torch.equal(target.draw(prompts, [1, 2]), before)


def test_an_adapter_is_added_to_the_weights(tiny_pipeline: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    base = {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}
    add_lora(backbone.denoiser, 2, 4.0, "cross-attention")
    for name, param in backbone.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param)
    layers = attached_layers(backbone.denoiser)
    fused = weights_of(
        load_target(tiny_pipeline, Method("m", adapter=save_adapter(backbone.denoiser, tmp_path)))
    )
    assert fused.keys() == base.keys()
    for name, value in fused.items():
        layer = layers.get(name.removesuffix(".weight"))
        expected = base[name] if layer is None else base[name] + layer.up @ layer.down
        assert torch.allclose(value, expected, atol=1e-5)
    assert any(not torch.equal(fused[name], base[name]) for name in base)


def test_other_weights_and_a_redirector_are_loaded(
    tiny_pipeline: Path, tmp_path: Path, target: PipelineTarget
) -> None:
    other = target.copied().backbone.denoiser
    with torch.no_grad():
        other.conv_in.weight.mul_(2)
    save_denoiser(other, tmp_path / "denoiser")
    drifted_hgr(target).save_pretrained(tmp_path / "hgr")
    loaded = load_target(tiny_pipeline, Method("m", denoiser=tmp_path / "denoiser", hgr=tmp_path / "hgr"))
    assert torch.equal(loaded.backbone.denoiser.conv_in.weight, other.conv_in.weight)
    assert loaded.negative is not None and loaded.stripped().negative is None
    with pytest.raises(ValueError, match="give one of them"):
        Method("m", adapter=tmp_path, denoiser=tmp_path / "denoiser")
    HGR(text_width=128, max_tokens=24, base_fingerprint="0" * 16).save_pretrained(tmp_path / "stranger")
    with pytest.raises(ValueError, match="belongs to the base model"):
        load_target(tiny_pipeline, Method("m", hgr=tmp_path / "stranger"))
