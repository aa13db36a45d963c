"""The formulas against numbers worked out by hand, and the identities that they promise."""

import pytest
import torch

from safetune import diffusion


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_add_noise_by_hand() -> None:
    alphas = torch.tensor([0.64, 0.36])
    noisy = diffusion.add_noise(column(10.0, 10.0), column(1.0, 1.0), torch.tensor([0, 1]), alphas)
    assert noisy.flatten().tolist() == pytest.approx([0.8 * 10 + 0.6, 0.6 * 10 + 0.8])


def test_redirect_target_by_hand() -> None:
    target = diffusion.redirect_target(column(1.0), column(3.0), column(2.0), guidance_scale=5.0)
    assert target.item() == pytest.approx(1 + 5 / 4 * (3 - 2))


@pytest.mark.parametrize("scale", [1.5, 5.0, 7.5])
def test_safecfg_on_the_target_is_cfg_on_the_safe_prompt(scale: float) -> None:
    null, cond, safe = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    target = diffusion.redirect_target(null, cond, safe, scale)
    torch.testing.assert_close(diffusion.cfg(target, cond, scale), diffusion.cfg(null, safe, scale))


def test_redirect_target_needs_guidance() -> None:
    with pytest.raises(ValueError, match=r"guidance_scale 1\.0"):
        diffusion.redirect_target(column(1.0), column(1.0), column(1.0), guidance_scale=1.0)


def test_safe_target_folds_the_redirector_into_the_student() -> None:
    null, cond, redirected = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    scale = 5.0
    student = diffusion.safe_target(cond, redirected, null, torch.ones(2).double(), eta=(scale - 1) / scale)
    torch.testing.assert_close(diffusion.cfg(null, student, scale), diffusion.cfg(redirected, cond, scale))


def test_mse_along_takes_the_part_on_the_direction_alone() -> None:
    predicted, target = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.zeros(2, 2)
    direction = torch.tensor([[-2.0, 0.0], [0.0, 0.0]])
    along = diffusion.mse_along(predicted, target, direction)
    assert along.tolist() == pytest.approx([3.0**2 / 2, 0.0])


def test_coarse_keeps_the_means_of_areas() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    areas = diffusion.coarse(maps)
    assert areas[0, 0, :2, :2].tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert areas.sum() == 12 and ((maps - areas) * areas).sum() == 0
    torch.testing.assert_close(diffusion.coarse(areas), areas)


def test_safe_target_leaves_clean_pairs_alone() -> None:
    cond = column(3.0, 3.0)
    target = diffusion.safe_target(
        cond, column(7.0, 7.0), column(5.0, 5.0), torch.tensor([0.0, 0.5]), eta=1.0
    )
    assert target.flatten().tolist() == [3.0, 3.0 - 0.5 * 2.0]


def test_signal_weight_by_hand() -> None:
    weight = diffusion.signal_weight(torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.5, 0.01]), cap=50.0)
    assert weight.tolist() == pytest.approx([1.0, 2.0, 50.0])
    assert diffusion.signal_weight(torch.tensor([0, 1]), None, cap=50.0).tolist() == [1.0, 1.0]


def test_seeded_noise_is_the_same_in_any_batch() -> None:
    together = diffusion.seeded_noise((4, 2, 2), [5, 6])
    assert torch.equal(together[1], diffusion.seeded_noise((4, 2, 2), [6])[0])
