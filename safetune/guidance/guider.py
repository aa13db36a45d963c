"""A diffusers guider: SafeCFG for modular pipelines."""

import weakref
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from safetune.conditioning import Conditioning
from safetune.guidance.redirection import (
    Memory,
    acts,
    check_base,
    check_options,
    no_guidance,
    redirect,
    unwrap,
)
from safetune.hgr import HGR

OTHER_FAMILY = "SafeCFGGuidance is for the modular pipelines of SDXL and Stable Diffusion 3"


class SafeCFGGuidance(ClassifierFreeGuidance):
    """SafeCFG for the modular pipelines of SDXL and SD 3: `pipe.update_components(guider=guider)`.

    `guider.hgr` is the redirector. Options are ClassifierFreeGuidance's, but `start` and `stop` bound the
    redirection, as enable_safecfg's do, and guidance itself acts in every step. `guider.fingerprint` may hold
    the denoiser's fingerprint, which is then not computed. Runs raise what enable_safecfg and its runs raise.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        strength: float = 1.0,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        check_options(strength, start, stop)
        registered = {"_use_default_values": [], **self.config}
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation, 0.0, 1.0, enabled)
        self.register_to_config(**registered)  # its __init__ registers its own start, stop and defaults
        self.strength, self.redirect_start, self.redirect_stop = strength, start, stop
        self.hgr: HGR | None = None
        self.fingerprint: str | None = None
        self._memory = Memory()
        self._checked: tuple[object, ...] = ()

    def new(self, **options: Any) -> "SafeCFGGuidance":
        """A copy with other options and the same redirector."""
        guider: SafeCFGGuidance = super().new(**options)
        guider.hgr, guider.fingerprint = self.hgr, self.fingerprint
        return guider

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """The pipeline's word before each step; at the first one the last run's prompts are forgotten."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._memory = Memory()

    def prepare_models(self, denoiser: nn.Module) -> None:
        """The pipeline's word before each pass; the first with a denoiser checks whose the redirector is."""
        checked = (weakref.ref(denoiser), self.hgr, self.fingerprint)
        if checked != self._checked:
            check_base(self._redirector(), unwrap(denoiser), self.fingerprint)
            self._checked = checked
        super().prepare_models(denoiser)

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """Conditional and unconditional inputs, the latter redirected."""
        hgr = self._redirector()
        if not self._enabled or self.guidance_scale + self.use_original_formulation <= 1:
            raise ValueError(no_guidance(self.guidance_scale, "take another guider"))
        names = [name for name in ("prompt_embeds", "encoder_hidden_states", "text_embeds") if name in data]
        pairs = [data[name] for name in names]
        if names[:1] == ["text_embeds"] or not names:
            raise ValueError(OTHER_FAMILY)
        if any(not isinstance(pair, tuple) or pair[1] is None for pair in pairs):
            raise ValueError(
                "the pipeline made no negative embeddings to redirect: Stable Diffusion 3's modular pipeline "
                'guides only with a negative prompt, give negative_prompt="" where you have none'
            )
        if acts(self._step or 0, self._num_inference_steps or 1, self.redirect_start, self.redirect_stop):
            positive, negative = (Conditioning(*side) for side in zip(*pairs, strict=True))
            redirected = self._memory.recall(
                [tensor for pair in pairs for tensor in pair],
                lambda: redirect(hgr, positive, negative, self.strength),
            )
            new = (redirected.embeds, redirected.pooled)
            data = data | {name: (data[name][0], part) for name, part in zip(names, new, strict=False)}
        return super().prepare_inputs(data)

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """What pipelines of other families call; no redirector belongs to them."""
        raise ValueError(OTHER_FAMILY)

    def _redirector(self) -> HGR:
        if self.hgr is None:
            raise RuntimeError(
                "this guider has no redirector: set guider.hgr = HGR.from_pretrained(...) first"
            )
        return self.hgr
