"""A base in 4 or 8 bits: close to the base, frozen, and a LoRA or DoRA learns on it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safetune.backbone import Backbone, load_backbone
from safetune.finetuning import quantization
from safetune.finetuning.adapters import add_lora, teacher, trainable
from safetune.finetuning.optimizers import build_optimizer
from safetune.finetuning.quantization import (
    QUANTIZATIONS,
    bitsandbytes_config,
    load_quantized,
    quantize_linears,
)

Inputs = tuple[Tensor, Tensor]


def load(folder: Path, bits: str) -> Backbone:
    return load_quantized(folder, bits, "cpu", torch.float32)


def predict(backbone: Backbone, inputs: Inputs) -> Tensor:
    noisy, embeds = inputs
    output: Tensor = backbone.denoiser(
        noisy, torch.full((len(noisy),), 500), encoder_hidden_states=embeds
    ).sample
    return output


@pytest.fixture(scope="module")
def inputs(tiny_pipeline: Path) -> Inputs:
    torch.manual_seed(0)
    embeds = load_backbone(tiny_pipeline).encode_prompts(["a cat", "a dog"]).embeds
    return torch.randn(2, 4, 16, 16), embeds


def frozen(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that take no gradient, and of their scales."""
    found = {
        name: param.detach().clone() for name, param in module.named_parameters() if not param.requires_grad
    }
    for name, param in module.named_parameters():
        if (state := getattr(param, "quant_state", None)) is not None:
            found[f"{name}.absmax"] = state.absmax.clone()
        if (scales := getattr(param, "SCB", None)) is not None:
            found[f"{name}.SCB"] = scales.clone()
    return found


@pytest.mark.parametrize(("bits", "tolerance"), [("4bit", 0.15), ("8bit", 0.02)])
@torch.no_grad()
def test_close_to_the_base(bits: str, tolerance: float, tiny_pipeline: Path, inputs: Inputs) -> None:
    base, held = load_backbone(tiny_pipeline), load(tiny_pipeline, bits)
    assert held.fingerprint == base.fingerprint
    exact, found = predict(base, inputs), predict(held, inputs)
    assert 0 < (found - exact).norm() < tolerance * exact.norm()
    kinds = {type(m).__name__ for m in held.denoiser.modules() if isinstance(m, nn.Linear)}
    assert kinds == {"Linear4bit" if bits == "4bit" else "Linear8bitLt"}
    assert {type(m) for m in held.denoiser.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_an_adapter_learns_on_it(bits: str, dora: bool, tiny_pipeline: Path, inputs: Inputs) -> None:
    torch.manual_seed(0)
    backbone = load(tiny_pipeline, bits)
    with torch.no_grad():
        base = predict(backbone, inputs)
        wanted = predict(backbone, (inputs[0], inputs[1] + torch.randn_like(inputs[1])))
    add_lora(backbone.denoiser, 4, 4.0, "attention", dora=dora)
    before = frozen(backbone.denoiser)
    params = trainable(backbone.denoiser)
    assert {param.dtype for param in params} == {torch.float32}
    assert len(params) == (3 if dora else 2) * sum(
        "lora_A" in name for name, _ in backbone.denoiser.named_parameters()
    )
    backbone.denoiser.train()
    optimizer = build_optimizer("adamw", params, lr=1e-2)
    losses = []
    for _ in range(8):
        with torch.no_grad(), teacher(backbone.denoiser):
            assert torch.equal(predict(backbone, inputs), base)  # between steps too, as the recipe asks it
        loss = F.mse_loss(predict(backbone, inputs), wanted)
        loss.backward()
        assert all(param.grad is not None for param in params)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    after = frozen(backbone.denoiser)
    assert len(before) > len(list(backbone.denoiser.parameters())) - len(params)  # scales are among them
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("bits", QUANTIZATIONS)
def test_checkpointing_changes_no_gradient(bits: str, tiny_pipeline: Path, inputs: Inputs) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = load(tiny_pipeline, bits)
        add_lora(backbone.denoiser, 2, 2.0, "attention")
        if checkpointing:
            backbone.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        backbone.denoiser.train()
        predict(backbone, inputs).pow(2).mean().backward()
        found.append([param.grad for param in trainable(backbone.denoiser)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_widths_that_are_no_multiples_of_64() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 24), nn.Linear(24, 8)).eval()
    given = torch.randn(3, 40)
    exact = module(given)
    quantize_linears(module, "4bit", torch.float32)
    assert (module(given) - exact).norm() < 0.3 * exact.norm()


def test_the_config_for_cuda_asks_for_the_same_layers() -> None:
    config = bitsandbytes_config("4bit", torch.bfloat16)
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert bitsandbytes_config("8bit", torch.bfloat16).load_in_8bit


def test_other_numbers_of_bits() -> None:
    with pytest.raises(ValueError, match="quantization '2bit'; allowed: 4bit, 8bit"):
        load_quantized("no model is loaded", "2bit", "cpu", torch.float32)


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        RuntimeError, match=r"quantization 4bit needs bitsandbytes, .*'safetune-diffusion\[bnb\]'"
    ):
        load_quantized("no model is loaded", "4bit", "cpu", torch.float32)
