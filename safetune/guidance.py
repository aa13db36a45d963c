"""SafeCFG in classic diffusers pipelines: a negative embedding of its own for every prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.hgr import HGR


@torch.no_grad()
def safecfg_negative_embeds(backbone: Backbone, hgr: HGR, prompts: Sequence[str]) -> Tensor:
    """HGR(c) (N, L, D) for N prompts: pass it as `negative_prompt_embeds=` to the pipeline.

    The empty prompt is encoded in a batch of N as the pipeline does, so that an untrained redirector gives
    plain CFG bit for bit. Raises ValueError when the redirector belongs to another base model.
    """
    hgr.check_base(backbone.fingerprint)
    null = backbone.encode_prompts([""] * len(prompts))
    return hgr.redirect(backbone.encode_prompts(prompts), null).embeds
