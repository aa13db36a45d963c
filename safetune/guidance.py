"""SafeCFG in diffusers: a guider for modular pipelines, one call for classic ones.

Both add the redirector's delta to the unconditional embedding, so a user's own negative prompt is kept and
composed with it, and the only cost over classifier-free guidance is the redirector's pass per prompt.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, cat, shift
from safetune.hgr import HGR

_HANDLE = "_safecfg_handle"


def enable_safecfg(
    pipeline: DiffusionPipeline, hgr: HGR, strength: float = 1.0, start: float = 0.0, stop: float = 1.0
) -> None:
    """Guide a classic pipeline by SafeCFG until disable_safecfg; works for img2img and inpainting too.

    strength 0 is plain CFG, exactly. start and stop are fractions of the steps between which the redirection
    acts. Sampling without guidance (guidance_scale 1 or less) then raises RuntimeError.
    """
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"start {start}, stop {stop}: give fractions with 0 <= start <= stop <= 1")
    disable_safecfg(pipeline)
    hook = _ClassicRedirection(pipeline, hgr, strength, start, stop)
    handle = _denoiser(pipeline).register_forward_pre_hook(hook, with_kwargs=True)
    setattr(pipeline, _HANDLE, handle)


def disable_safecfg(pipeline: DiffusionPipeline) -> None:
    """Back to plain CFG; nothing happens where SafeCFG is not enabled."""
    handle = getattr(pipeline, _HANDLE, None)
    if handle is not None:
        handle.remove()
        setattr(pipeline, _HANDLE, None)


def safecfg_negative(backbone: Backbone, hgr: HGR, prompts: Sequence[str]) -> Conditioning:
    """HGR(c), N rows: `negative_prompt_embeds=` and `negative_pooled_prompt_embeds=` for a pipeline.

    The null conditioning is encoded in a batch of N as the pipeline does, so that an untrained redirector
    gives plain CFG bit for bit. Raises ValueError when the redirector belongs to another base model.
    """
    hgr.check_base(backbone.fingerprint)
    return hgr.redirect(backbone.encode_prompts(prompts), backbone.null(len(prompts)))


class SafeCFGGuidance(ClassifierFreeGuidance):
    """SafeCFG for modular pipelines: `pipe.update_components(guider=guider)` after `guider.hgr = hgr`.

    Takes ClassifierFreeGuidance's options; its start and stop bound guidance as a whole.
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
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation, start, stop, enabled)
        self.strength = strength
        self.hgr: HGR | None = None

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """Conditional and unconditional inputs, the latter redirected."""
        if self.hgr is None:
            raise RuntimeError(
                "this guider has no redirector: set guider.hgr = HGR.from_pretrained(...) first"
            )
        embeds = next(key for key in ("prompt_embeds", "encoder_hidden_states") if key in data)
        pooled = next((key for key in ("text_embeds", "pooled_projections") if key in data), "")
        if data[embeds][1] is None:
            return super().prepare_inputs(data)
        positive, negative = (
            Conditioning(data[embeds][side], data[pooled][side] if pooled else None) for side in (0, 1)
        )
        redirected = _redirect(self.hgr, positive, negative, self.strength)
        changed: dict[str, Any] = {embeds: (positive.embeds, redirected.embeds)}
        if pooled:
            changed[pooled] = (positive.pooled, redirected.pooled)
        return super().prepare_inputs({**data, **changed})


class _ClassicRedirection:
    """Forward pre-hook of the denoiser: redirects the first half of the batch, once per prompt batch."""

    def __init__(
        self, pipeline: DiffusionPipeline, hgr: HGR, strength: float, start: float, stop: float
    ) -> None:
        self.pipeline, self.hgr, self.strength = pipeline, hgr, strength
        self.start, self.stop = start, stop
        self.given: Tensor | None = None
        self.redirected: Conditioning | None = None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.pipeline.do_classifier_free_guidance:
            raise RuntimeError(
                "SafeCFG redirects the unconditional branch, and there is none at guidance_scale "
                f"{self.pipeline.guidance_scale}: give more than 1, or call disable_safecfg(pipeline)"
            )
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        if not self.start <= self._progress(timestep) <= self.stop:
            return args, kwargs
        given = _read(kwargs)
        if given.embeds is not self.given or self.redirected is None:
            half = len(given) // 2
            negative, positive = given.select(slice(0, half)), given.select(slice(half, None))
            redirected = _redirect(self.hgr, positive, negative, self.strength)
            self.given, self.redirected = given.embeds, cat([redirected, positive])
        return args, _write(kwargs, self.redirected)

    def _progress(self, timestep: Tensor) -> float:
        """Fraction of the scheduler's steps that are done, in [0, 1)."""
        timesteps = self.pipeline.scheduler.timesteps
        index = (timesteps == timestep.flatten()[0]).nonzero()
        return float(index[0]) / len(timesteps) if len(index) else 0.0


def _redirect(hgr: HGR, positive: Conditioning, negative: Conditioning, strength: float) -> Conditioning:
    """Add strength * delta(positive) to the negative, in its precision; strength 0 changes no bit."""
    if strength == 0:
        return negative
    hgr.to(positive.embeds.device)
    return shift(negative, hgr.delta(positive), strength)


def _read(kwargs: dict[str, Any]) -> Conditioning:
    """The conditioning that a pipeline gives its denoiser; SDXL and SD 3 keep the pooled part elsewhere."""
    pooled = kwargs.get("pooled_projections")
    if pooled is None:
        pooled = (kwargs.get("added_cond_kwargs") or {}).get("text_embeds")
    return Conditioning(kwargs["encoder_hidden_states"], pooled)


def _write(kwargs: dict[str, Any], conditioning: Conditioning) -> dict[str, Any]:
    """The denoiser's arguments with another conditioning, each part where _read found it."""
    changed: dict[str, Any] = {**kwargs, "encoder_hidden_states": conditioning.embeds}
    if kwargs.get("pooled_projections") is not None:
        changed["pooled_projections"] = conditioning.pooled
    elif conditioning.pooled is not None:
        changed["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": conditioning.pooled}
    return changed


def _denoiser(pipeline: DiffusionPipeline) -> nn.Module:
    """The pipeline's UNet or transformer; ValueError for a pipeline that has neither."""
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise ValueError(f"{type(pipeline).__name__} has neither a unet nor a transformer to guide")
