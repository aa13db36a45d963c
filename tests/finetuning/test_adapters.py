"""What is trained: groups of modules, DoRA, all weights; and the teacher that stays what it was."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.finetuning.adapters import TARGETS, add_lora, frozen_copy, teacher, trainable


def test_teacher_is_the_base_and_the_student_is_not(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    noisy, t, prompts = torch.randn(1, 4, 16, 16), torch.tensor([500]), backbone.encode_prompts(["a cat"])
    with torch.no_grad():
        base = backbone.predict(noisy, t, prompts)
        add_lora(backbone.denoiser, rank=2, alpha=2.0, targets="attention")
        assert torch.equal(backbone.predict(noisy, t, prompts), base)
        for name, value in backbone.denoiser.named_parameters():
            if "lora_B" in name:
                value.normal_()
        assert not torch.allclose(backbone.predict(noisy, t, prompts), base)
        with teacher(backbone.denoiser):
            assert torch.equal(backbone.predict(noisy, t, prompts), base)
            assert all(param.requires_grad for param in trainable(backbone.denoiser))
        assert not torch.allclose(backbone.predict(noisy, t, prompts), base)


def test_a_copy_is_frozen_and_apart(tiny_pipeline: Path) -> None:
    denoiser = load_backbone(tiny_pipeline).denoiser
    copied = frozen_copy(denoiser, torch.bfloat16)
    denoiser.requires_grad_(True)
    assert not trainable(copied) and trainable(denoiser)
    assert {param.dtype for param in copied.parameters()} == {torch.bfloat16}
    assert {param.dtype for param in denoiser.parameters()} == {torch.float32}


@pytest.mark.parametrize("targets", TARGETS["unet"])
def test_groups_of_a_unet(targets: str, tiny_pipeline: Path) -> None:
    denoiser = load_backbone(tiny_pipeline).denoiser
    add_lora(denoiser, 2, 2.0, targets)
    names = {name for name, param in denoiser.named_parameters() if param.requires_grad}
    assert any("attn1" in name for name in names) == (targets != "cross-attention")
    assert any("attn2" in name for name in names) == (targets != "self-attention")
    assert any(".ff." in name for name in names) == targets.startswith("linear")
    assert any("downsamplers" in name for name in names) == (targets == "linear+conv")


def test_groups_of_a_transformer(tiny_sd3: Path) -> None:
    denoiser = load_backbone(tiny_sd3).denoiser
    add_lora(denoiser, 2, 2.0, "cross-attention", dora=True)
    names = {name for name, param in denoiser.named_parameters() if param.requires_grad}
    assert names and all("add_" in name for name in names)
    assert any("lora_magnitude_vector" in name for name in names)
    with pytest.raises(
        ValueError, match=r"targets 'linear\+conv'; allowed for SD3Transformer2DModel: cross-attention, self-"
    ):
        add_lora(load_backbone(tiny_sd3).denoiser, 2, 2.0, "linear+conv")
