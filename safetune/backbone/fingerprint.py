"""A short name for a set of weights."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def weights_fingerprint(module: nn.Module) -> str:
    """16 hex digits of SHA-256 over the names, shapes and signs of all weights.

    Rounding keeps signs, so a model reads the same in fp32, bf16 and fp16, whichever it was published in,
    while training turns some of its many small weights round. Read it before adapters are attached: they
    would count.
    """
    return state_fingerprint(module.state_dict())


def state_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """weights_fingerprint of a module with this state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        bits = torch.signbit(value.detach()).cpu().numpy()
        digest.update(np.packbits(bits).tobytes())
    return digest.hexdigest()[:16]
