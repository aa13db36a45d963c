"""A short name for a set of weights."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(module: nn.Module) -> str:
    """16 hex digits of SHA-256 over names and bf16-rounded values: the same for a model in fp32 or bf16.

    Read it before adapters are attached: they would count. fp16 rounds first, so a model published in fp32
    and loaded in fp16 may read differently; one published in fp16 does not.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if value.is_floating_point():
            value = value.to(torch.bfloat16).view(torch.int16)
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
