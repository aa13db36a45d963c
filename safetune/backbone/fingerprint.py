"""A short name for a set of weights."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(module: nn.Module) -> str:
    """16 hex digits of SHA-256 over names and fp16 values, so that a cast to fp32 keeps the fingerprint.

    Read it before adapters are attached: they would count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if value.is_floating_point():
            value = value.to(torch.float16)
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
