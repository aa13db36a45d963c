import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from safetune import precision
from safetune.evaluation.sampling import SamplingOptions
from tests.tiny import tiny_unet


@pytest.mark.parametrize("bf16", [True, False])
def test_a_cpu_computes_in_what_it_is_fast_in(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16, raising=False)
    assert precision.fast_dtype() == (torch.bfloat16 if bf16 else torch.float32)
    assert precision.resolve_precision("auto") == ("bf16" if bf16 else "no")
    assert SamplingOptions().dtype == ("bfloat16" if bf16 else "float32")


def test_a_given_precision_stays() -> None:
    assert [precision.resolve_precision(name) for name in ("no", "fp16", "bf16")] == ["no", "fp16", "bf16"]
    assert SamplingOptions(dtype="float16").dtype == "float16"


def test_plain_backward_for_small_latents_on_a_cpu_alone() -> None:
    small, large, other = tiny_unet(), tiny_unet(), tiny_unet()
    large.register_to_config(sample_size=64)
    precision.use_plain_backward(small, torch.device("cpu"))
    precision.use_plain_backward(large, torch.device("cpu"))
    precision.use_plain_backward(other, torch.device("cuda"))
    kinds = [{type(each) for each in unet.attn_processors.values()} for unet in (small, large, other)]
    assert kinds == [{precision.PlainBackwardAttention}, {AttnProcessor2_0}, {AttnProcessor2_0}]


def test_plain_backward_is_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients are those of the fused kernel, which runs without gradient alone."""
    unet, calls = tiny_unet(), []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: (calls.append(1), fused(*args, **options))[1],
    )

    def output_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        embeds = (
            torch.linspace(-1, 1, 2 * 5 * unet.config.cross_attention_dim).view(2, 5, -1).requires_grad_()
        )
        output = unet(torch.ones(2, 4, 16, 16), torch.tensor([1, 500]), embeds).sample
        output.pow(2).sum().backward()
        return output.detach(), embeds.grad

    wanted = output_and_gradient()
    precision.use_plain_backward(unet, torch.device("cpu"))
    calls.clear()
    found = output_and_gradient()
    assert not calls
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        unet(torch.ones(1, 4, 16, 16), 1, torch.ones(1, 5, unet.config.cross_attention_dim))
    assert calls
