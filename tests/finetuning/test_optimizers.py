"""Optimizers by name: those in 8 bits go where AdamW goes, and say what is missing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from safetune.finetuning import quantization
from safetune.finetuning.optimizers import BITSANDBYTES, build_optimizer


def learnt(name: str) -> tuple[nn.Linear, list[float]]:
    """A layer of 4096 weights after 60 steps towards another one, and its losses."""
    torch.manual_seed(0)
    layer, wanted, given = nn.Linear(64, 64), nn.Linear(64, 64), torch.randn(128, 64)
    optimizer = build_optimizer(name, list(layer.parameters()), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(given), wanted(given).detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return layer, losses


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_close_to_adamw(name: str) -> None:
    (layer, losses), (exact, exact_losses) = learnt(name), learnt("adamw")
    assert exact_losses[-1] < 0.1 * exact_losses[0]
    assert losses[-1] == pytest.approx(exact_losses[-1], rel=0.05)
    torch.manual_seed(0)
    start = nn.Linear(64, 64).weight
    assert (layer.weight - exact.weight).norm() < 0.05 * (exact.weight - start).norm()


def test_states_are_of_8_bits_in_large_tensors_only() -> None:
    large, small = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64, 63))
    optimizer = build_optimizer("adamw8bit", [large, small], 1e-3)
    for param in (large, small):
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == torch.float32


def test_options_reach_every_optimizer() -> None:
    for name in ("adamw", "adamw8bit"):
        (group,) = build_optimizer(
            name, [nn.Parameter(torch.ones(2))], lr=0.5, weight_decay=0.25
        ).param_groups
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="optimizer 'adam8bit'; allowed: adamw, adamw8bit, paged_adamw, paged_a"
    ):
        build_optimizer("adam8bit", [], 1e-3)


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    params = [nn.Parameter(torch.ones(2))]
    build_optimizer("adamw", params, 1e-3)
    with pytest.raises(
        RuntimeError, match=r"optimizer adamw8bit needs bitsandbytes.* 'safetune-diffusion\[bnb\]'"
    ):
        build_optimizer("adamw8bit", params, 1e-3)
