import pytest
import torch

from safetune import precision
from safetune.evaluation.sampling import SamplingOptions


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
