"""Live bytes, counted by hand."""

import torch
from torch.nn import functional as F

from safetune.estimation.tracking import LiveBytes, MetaKernels


def test_what_is_made_and_let_go() -> None:
    given = torch.empty(256, device="meta")
    with LiveBytes() as counted:
        doubled = given * 2  # 1 KiB
        assert counted.live == 1024
        view = doubled.view(2, 128)
        both = torch.cat([doubled, doubled])
        assert counted.live == 1024 + 2048
        del doubled
        assert counted.live == 3072  # the view holds it
        del view
        assert counted.live == 2048
        both.mul_(2)
    assert counted.peak == 3072


def test_real_tensors_are_counted_alike() -> None:
    with LiveBytes() as counted:
        made = torch.ones(256) * 2
        del made
    assert (counted.live, counted.peak) == (0, 2048)


def test_autocast_and_fused_attention_on_the_meta_device() -> None:
    given, weight = torch.empty(8, 64, device="meta"), torch.empty(64, 64, device="meta", requires_grad=True)
    with MetaKernels(torch.bfloat16, on_cuda=True) as kernels:
        projected = F.linear(given, weight)
        assert projected.dtype == torch.bfloat16
        assert F.layer_norm(projected, (64,)).dtype == torch.float32
        F.linear(given, weight)
        assert len(kernels.casts) == 1
        query = torch.empty(1, 2, 1000, 32, device="meta")
        with LiveBytes() as counted:
            F.scaled_dot_product_attention(query, query, query)
        assert counted.peak < 1000 * 1000 * 4  # no scores (L, L)
    assert not kernels.casts
    with MetaKernels(torch.bfloat16, on_cuda=False):
        assert F.layer_norm(projected, (64,)).dtype == torch.bfloat16
