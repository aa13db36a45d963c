"""Resident bytes by hand, and beside those of real layers and optimizers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from safetune.backbone import load_backbone
from safetune.estimation.sharing import (
    Resident,
    dequantized_bytes,
    gathered_bytes,
    share,
    size_of,
    state_bytes,
    weight_bytes,
)
from safetune.finetuning.optimizers import build_optimizer
from safetune.finetuning.plan import Launch
from safetune.finetuning.quantization import quantize_linears


class Block(nn.Module):
    """1000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1000))


class Model(nn.Module):
    """Two blocks of 1000 weights and 400 outside of them, all trained."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.out = nn.Parameter(torch.zeros(400))


MODES = {
    # weights, gradients, optimizer, buffers, step of 2400 float32 weights with 16-bit passes and 2 processes
    Launch(): Resident(9600, 9600, 19200, 0),
    Launch("ddp", 2): Resident(9600, 9600, 19200, 9600),
    Launch("fsdp2", 2): Resident(4800, 4800, 9600, 2 * (2 * 1000 + 400)),
    Launch("zero1", 2): Resident(4800, 4800, 9600 + 4800, 4800, 4800),
    Launch("zero2", 2): Resident(4800, 2400, 9600 + 4800, 4800, 4800),
    Launch("zero2", 2, offload=True): Resident(4800, 0, 0, 4800, 0),
    Launch("zero3", 2): Resident(2400, 2400, 9600 + 4800, 4800 + 4800, 4800),
    Launch("zero3", 2, offload=True): Resident(0, 0, 0, 4800 + 4800, 0),
}


@pytest.mark.parametrize("launch", MODES, ids=lambda launch: launch.mode + "-offload" * launch.offload)
def test_modes(launch: Launch) -> None:
    shared = share(Model(), launch, quantization="none", optimizer="adamw", passes=torch.bfloat16)
    assert shared == MODES[launch]


def test_more_processes_hold_less() -> None:
    for mode in ("fsdp2", "zero2", "zero3"):
        two, four = (
            share(
                Model(),
                replace(Launch(mode), processes=count),
                quantization="none",
                optimizer="adamw",
                passes=torch.float32,
            )
            for count in (2, 4)
        )
        assert four.optimizer * 2 == two.optimizer


def test_nested_blocks_count_once() -> None:
    model = Model()
    model.first.inner = Block()  # type: ignore[assignment]
    assert gathered_bytes(model, torch.float32) == 4 * (2 * 1000 + 400)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_weights_beside_bitsandbytes(quantization: str) -> None:
    denoiser = load_backbone("tinysd").denoiser
    largest = max(m.weight.numel() for m in denoiser.modules() if type(m) is nn.Linear)
    assert dequantized_bytes(denoiser, quantization, torch.bfloat16) == 2 * largest
    assert dequantized_bytes(denoiser, "none", torch.bfloat16) == 0
    assert weight_bytes(denoiser, "none") == 4 * sum(p.numel() for p in denoiser.parameters())
    said = weight_bytes(denoiser, quantization)
    quantize_linears(denoiser, quantization, torch.float32)
    found = sum(map(size_of, denoiser.parameters()))
    for module in denoiser.modules():
        weight = getattr(module, "weight", None)
        if (state := getattr(weight, "quant_state", None)) is not None:
            # Without the tables of 16 and 256 values that each layer has.
            found += size_of(state.absmax) + size_of(state.state2.absmax)
        elif (scales := getattr(weight, "SCB", None)) is not None:
            found += size_of(scales)
    assert said == pytest.approx(found, rel=0.002)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_states_beside_real_ones(name: str) -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in ((64, 64), (512, 256), (100,))]
    optimizer = build_optimizer(name, params, 1e-3)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    found = sum(
        size_of(value) for value in states if isinstance(value, torch.Tensor) and value.numel() != 256
    )
    assert state_bytes(params, name) == pytest.approx(found, abs=16)


def test_paged_states_can_leave_the_gpu() -> None:
    assert state_bytes([nn.Parameter(torch.ones(8))], "paged_adamw8bit") == 0
