"""The fine-tuning step: teacher targets in one pass, the loss by hand, adapters off means the base."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.diffusion import safe_target
from safetune.finetuning.adapters import add_lora, teacher
from safetune.finetuning.objective import teacher_targets, unlearning_loss


def test_batched_targets_equal_single_passes(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    prompts, null = backbone.encode_prompts(["a cat with a knife", "a dog"]), backbone.null()
    redirected = backbone.encode_prompts(["a knife", "a dog"])
    noisy, t, harm = torch.randn(2, 4, 16, 16), torch.tensor([100, 800]), torch.tensor([0.9, 0.0])
    target = teacher_targets(backbone, noisy, t, prompts, redirected, null, harm, eta=0.8)
    with torch.no_grad():
        eps = [backbone.predict(noisy, t, rows) for rows in (prompts, redirected, null.expand(2))]
    torch.testing.assert_close(target, safe_target(*eps, harm, 0.8), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(target[1], eps[0][1], atol=1e-5, rtol=1e-4)


def test_loss_by_hand() -> None:
    predicted, target = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 1.0)
    loss, scalars = unlearning_loss(
        predicted, target, torch.tensor([1.0, 0.0]), 2.0, torch.tensor([0.5, 1.0])
    )
    assert loss.tolist() == pytest.approx([0.5 * 4.0, 2.0 * 4.0])
    assert scalars["clean_error"].item() == pytest.approx(4.0)


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
        assert not torch.allclose(backbone.predict(noisy, t, prompts), base)


def test_unknown_targets(tiny_pipeline: Path) -> None:
    with pytest.raises(
        ValueError, match="targets 'convolutions'; allowed: cross-attention, attention, linear"
    ):
        add_lora(load_backbone(tiny_pipeline).denoiser, 2, 2.0, "convolutions")
