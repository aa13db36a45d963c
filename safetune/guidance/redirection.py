"""The redirection itself: delta added to an unconditional embedding, for the right model and steps only."""

import logging
import math
from collections.abc import Callable, Sequence

from accelerate.utils.modeling import get_state_dict_offloaded_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.backbone.fingerprint import state_fingerprint
from safetune.conditioning import Conditioning, shift
from safetune.hgr import HGR

logger = logging.getLogger(__name__)


def redirect(hgr: HGR, positive: Conditioning, negative: Conditioning, strength: float = 1.0) -> Conditioning:
    """The negative plus strength * delta(positive), in the negative's precision; strength 0 changes no bit.

    Embeddings (B, L, D) and pooled (B, P) or None. ValueError for other shapes than the redirector's.
    """
    pooled = 0 if positive.pooled is None else positive.pooled.shape[-1]
    own_pooled = 0 if hgr.project_pooled is None else hgr.project_pooled.out_features
    own = (hgr.positions.shape[0], hgr.project_in.in_features)
    given = tuple(positive.embeds.shape[1:])
    if (given, pooled) != (own, own_pooled):
        raise ValueError(
            f"this HGR takes prompts of shape {own} and pooled width {own_pooled}, the pipeline gives "
            f"{given} and {pooled}: load the HGR of this base model, trained on prompts of this length"
        )
    if strength == 0:
        return negative
    return shift(negative, hgr.to(positive.embeds.device).delta(positive), strength)


def safecfg_negative(backbone: Backbone, hgr: HGR, prompts: Sequence[str]) -> Conditioning:
    """HGR(c), N rows: `negative_prompt_embeds=` and `negative_pooled_prompt_embeds=` for a pipeline.

    The null conditioning is encoded in a batch of N as the pipeline does, so that an untrained redirector
    gives plain CFG bit for bit. Raises ValueError when the redirector belongs to another base model.
    """
    hgr.check_base(backbone.fingerprint)
    return redirect(hgr, backbone.encode_prompts(prompts), backbone.null(len(prompts)))


class Memory:
    """The last redirection; good for the very tensors it came from, as long as nobody writes to them."""

    def __init__(self) -> None:
        # The tensors themselves are kept: the id of a freed one may be given to another.
        self.given: list[tuple[Tensor | None, float]] = []
        self.redirected: Conditioning | None = None

    def recall(self, given: Sequence[Tensor | None], make: Callable[[], Conditioning]) -> Conditioning:
        """The redirection of the given tensors, made anew unless they are the last call's, unwritten."""
        known = len(given) == len(self.given) and all(
            tensor is last and written == writes(tensor)
            for tensor, (last, written) in zip(given, self.given, strict=True)
        )
        if self.redirected is None or not known:
            self.given = [(tensor, writes(tensor)) for tensor in given]
            self.redirected = make()
        return self.redirected


def writes(tensor: Tensor | None) -> float:
    """Number of writes to a tensor in place; for inference mode's, which nobody counts, not a number."""
    if tensor is None:
        return 0
    return math.nan if tensor.is_inference() else tensor._version


def acts(step: int, steps: int, start: float, stop: float) -> bool:
    """Whether step 0 <= i < steps lies between two fractions; every range holds at least one step."""
    first = min(math.floor(round(start * steps, 6)), steps - 1)
    return first <= step < max(math.ceil(round(stop * steps, 6)), first + 1)


def check_options(strength: float, start: float, stop: float) -> None:
    """ValueError for a strength below 0, which would add harm, and for fractions that leave no step."""
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength {strength}: give 0 or more; 1 is the redirector as it was trained")
    if not 0 <= start < stop <= 1:
        raise ValueError(f"start {start}, stop {stop}: give fractions with 0 <= start < stop <= 1")


def no_guidance(scale: float, otherwise: str) -> str:
    """The error of a run without an unconditional branch."""
    return (
        f"SafeCFG redirects the unconditional branch, and there is none at guidance_scale {scale} or in a "
        f"distilled model: give a scale above classifier-free guidance's 1, or {otherwise}"
    )


def check_base(hgr: HGR, denoiser: nn.Module, fingerprint: str | None = None) -> None:
    """ValueError unless the redirector was trained for this denoiser; one that names no base may pass."""
    if not hgr.base_fingerprint:
        logger.warning("this HGR names no base model: whether it belongs to the pipeline cannot be checked")
        return
    try:
        hgr.check_base(own_fingerprint(denoiser) if fingerprint is None else fingerprint)
    except ValueError as error:
        raise ValueError(
            f"{error}. A model that is quantised or has a LoRA fused into it counts as "
            "another one: where you know that it is the same, give fingerprint=hgr.base_fingerprint"
        ) from None


def own_fingerprint(denoiser: nn.Module) -> str:
    """Fingerprint of a denoiser without the adapters that are attached to it, offloaded or not."""
    offloaded = any(parameter.is_meta for parameter in denoiser.parameters())
    weights = get_state_dict_offloaded_model(denoiser) if offloaded else denoiser.state_dict()
    for path, module in denoiser.named_modules():
        if isinstance(module, BaseTunerLayer):
            inner = f"{path}.base_layer."
            kept = {
                f"{path}.{name.removeprefix(inner)}" if name.startswith(inner) else name: value
                for name, value in weights.items()
                if name.startswith(inner) or not name.startswith(f"{path}.")
            }
            weights = kept
    return state_fingerprint(weights)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside of torch.compile's wrapper."""
    inner = getattr(module, "_orig_mod", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else module
