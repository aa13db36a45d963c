"""The redirector's loss, by hand, and its targets in one batched pass."""

import pytest
import torch

from safetune.backbone import Backbone, load_backbone
from safetune.conditioning import replace_rows
from safetune.diffusion import cfg
from safetune.hgr.objective import redirection_loss
from safetune.hgr.training import teacher_targets


def test_loss_by_hand() -> None:
    predicted, target = torch.full((2, 1, 1, 2), 2.0), torch.zeros(2, 1, 1, 2)
    norm = torch.tensor([9.0, 1.0])
    harmful, weight = torch.tensor([True, False]), torch.tensor([1.0, 0.5])
    eps_null = torch.tensor([[3.0, 0.0], [0.0, 0.0]]).view(2, 1, 1, 2)  # half of the error lies along (-3, 0)
    loss, scalars = redirection_loss(predicted, target, eps_null, norm, harmful, 3.0, 0.1, 6.0, weight)
    assert loss.tolist() == pytest.approx([4.0 + 6.0 * 2.0, 3 * 0.5 * 4.0 + 0.1 * 1.0])
    assert scalars["clean_delta"].item() == pytest.approx(1.0)
    assert scalars["harmful_delta"].item() == pytest.approx(3.0)
    assert scalars["harmful_error"].item() == pytest.approx(4.0)


def test_fine_parts_cannot_be_made_up_for_by_areas() -> None:
    """An error square to the direction as a whole, but along it in areas and in finer parts."""
    areas, fine = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    fine[..., ::2] = -1
    target, nothing = areas + fine, torch.zeros(1, 1, 8, 8)
    loss, _ = redirection_loss(
        target + areas - fine,
        target,
        nothing,
        torch.zeros(1),
        torch.tensor([True]),
        1.0,
        0.0,
        6.0,
        torch.ones(1),
    )
    assert loss.tolist() == pytest.approx([2.0 + 6.0 * 2.0])


@pytest.fixture(params=["tiny_pipeline", "tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Noise, v, noise with pooled embeddings, flow; in float64, so that the formula alone is compared."""
    return load_backbone(request.getfixturevalue(request.param), dtype=torch.float64)


def test_batched_targets_equal_single_passes(backbone: Backbone) -> None:
    positives = backbone.encode_prompts(["a cat with a knife", "a dog in the city", "bomb"])
    negatives = backbone.encode_prompts(["a cat", "a dog in the city", "a fox"])
    null, harmful = backbone.null(), torch.tensor([True, False, True])
    negatives = replace_rows(negatives, torch.tensor([False, False, True]), null.expand(3))
    noisy, t = torch.randn(3, 4, 16, 16), torch.tensor([300, 700, 900])
    target, eps_null = teacher_targets(
        backbone, noisy, t, positives, negatives, null, harmful, guidance_scale=5.0, strength=1.0
    )
    with torch.no_grad():
        eps = [backbone.predict(noisy, t, rows) for rows in (null.expand(3), positives, negatives)]
    torch.testing.assert_close(eps_null, eps[0], atol=1e-5, rtol=1e-5)
    rewriting = eps[0][0] + 1.25 * (eps[1][0] - eps[2][0])
    concept = eps[0][2] + 1.25 * (eps[1][2] - eps[0][2])
    expected = torch.stack([rewriting, eps[0][1], concept])
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.5, 7.5])
def test_the_target_reproduces_cfg_on_the_rewriting(backbone: Backbone, guidance_scale: float) -> None:
    prompts = backbone.encode_prompts(["a cat with a knife in the forest", "a dog and a bomb"])
    safe = backbone.encode_prompts(["a cat in the forest", "a dog and a ball"])
    null, noisy, t = backbone.null(), torch.randn(2, 4, 16, 16), torch.tensor([300, 900])
    target, eps_null = teacher_targets(
        backbone, noisy, t, prompts, safe, null, torch.tensor([True, True]), guidance_scale, strength=1.0
    )
    with torch.no_grad():
        eps_cond, eps_safe = (backbone.predict(noisy, t, rows) for rows in (prompts, safe))
    safecfg = cfg(target, eps_cond, guidance_scale)
    torch.testing.assert_close(safecfg, cfg(eps_null, eps_safe, guidance_scale), atol=1e-5, rtol=1e-5)
