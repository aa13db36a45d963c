"""The redirector's loss, by hand, and its targets in one batched pass."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.diffusion import redirect_target
from safetune.hgr.objective import redirection_loss
from safetune.hgr.training import teacher_targets


def test_loss_by_hand() -> None:
    predicted, target = torch.full((2, 1, 1, 2), 2.0), torch.zeros(2, 1, 1, 2)
    norm = torch.tensor([9.0, 1.0])
    harmful, weight = torch.tensor([True, False]), torch.tensor([1.0, 0.5])
    loss, scalars = redirection_loss(predicted, target, norm, harmful, 3.0, 0.1, weight)
    assert loss.tolist() == pytest.approx([4.0, 3 * 0.5 * 4.0 + 0.1 * 1.0])
    assert scalars["clean_delta"].item() == pytest.approx(1.0)
    assert scalars["harmful_delta"].item() == pytest.approx(3.0)
    assert scalars["harmful_error"].item() == pytest.approx(4.0)


def test_batched_targets_equal_single_passes(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    prompts = backbone.encode_prompts(["a cat with a knife in its hand in the forest", "a dog in the city"])
    safe = backbone.encode_prompts(["a cat in the forest", "a dog in the city"])
    null, harmful = backbone.null(), torch.tensor([True, False])
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([300, 700])
    target = teacher_targets(
        backbone, noisy, t, prompts, safe, null, harmful, guidance_scale=5.0, strength=1.0
    )
    with torch.no_grad():
        eps = [backbone.predict(noisy, t, rows) for rows in (null.expand(2), prompts, safe)]
    by_hand = redirect_target(eps[0], eps[1], eps[2], 5.0)
    torch.testing.assert_close(target[0], by_hand[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(target[1], eps[0][1], atol=1e-5, rtol=1e-4)
