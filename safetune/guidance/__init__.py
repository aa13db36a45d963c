"""SafeCFG in diffusers: one call for classic pipelines, a guider for modular ones.

Both add the redirector's delta to the unconditional embedding, so a user's own negative prompt is kept and
composed with it, and the only cost over classifier-free guidance is the redirector's pass per prompt. What
would leave a picture without redirection raises: no run falls back to plain guidance.
"""

from safetune.guidance.classic import disable_safecfg, enable_safecfg
from safetune.guidance.guider import SafeCFGGuidance
from safetune.guidance.redirection import safecfg_negative

__all__ = ["SafeCFGGuidance", "disable_safecfg", "enable_safecfg", "safecfg_negative"]
