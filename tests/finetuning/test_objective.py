"""The fine-tuning step: teacher targets in one pass, the loss by hand, adapters off means the base."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.diffusion import safe_target
from safetune.finetuning.objective import teacher_targets, timestep_weight, unlearning_loss


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
    loss, error = unlearning_loss(predicted, target, torch.tensor([0.5, 1.0]), torch.tensor([1.0, 2.0]))
    assert loss.tolist() == pytest.approx([0.5 * 4.0, 2.0 * 4.0])
    assert error.tolist() == pytest.approx([0.5 * 4.0, 4.0])


def test_timestep_weights_by_kind(tiny_pipeline: Path, tiny_sd2: Path, tiny_sd3: Path) -> None:
    backbone, t = load_backbone(tiny_pipeline), torch.tensor([10, 500])
    alpha = backbone.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    weights = {kind: timestep_weight(backbone, t, kind, 50.0, 5.0) for kind in ("signal", "min-snr", "none")}
    torch.testing.assert_close(weights["signal"], 1 / alpha)
    torch.testing.assert_close(weights["min-snr"], torch.stack([5 / snr[0], torch.tensor(1.0)]))
    assert weights["none"].tolist() == [1.0, 1.0]
    velocity = load_backbone(tiny_sd2)
    alpha = velocity.alphas_cumprod[t]
    weight = timestep_weight(velocity, t, "min-snr", 50.0, 5.0)
    torch.testing.assert_close(weight[1], alpha[1] / (1 - alpha[1]) * (1 - alpha[1]))
    with pytest.raises(ValueError, match="flow matching has no such ratio; give none"):
        timestep_weight(load_backbone(tiny_sd3), t, "min-snr", 50.0, 5.0)
