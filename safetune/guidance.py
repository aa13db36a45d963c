"""SafeCFG in diffusers: a guider for modular pipelines, one call for classic ones.

Both add the redirector's delta to the unconditional embedding, so a user's own negative prompt is kept and
composed with it, and the only cost over classifier-free guidance is the redirector's pass per prompt. What
would leave a picture without redirection raises: no run falls back to plain guidance.
"""

import functools
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate.utils.modeling import get_state_dict_offloaded_model
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.conditioning import Conditioning, cat, shift
from safetune.hgr import HGR

logger = logging.getLogger(__name__)

PIPELINES = tuple(
    f"StableDiffusion{family}{task}Pipeline"
    for family in ("", "XL", "3")
    for task in ("", "Img2Img", "Inpaint")
)
"""Classic pipelines that give their denoiser the negative half of a batch first, and no third part."""

OTHER_FAMILY = "SafeCFGGuidance is for the modular pipelines of SDXL and Stable Diffusion 3"

_SETTINGS, _GATE = "_safecfg", "_safecfg_gate"


def enable_safecfg(
    pipeline: DiffusionPipeline,
    hgr: HGR,
    strength: float = 1.0,
    start: float = 0.0,
    stop: float = 1.0,
    fingerprint: str | None = None,
) -> None:
    """Guide a classic pipeline by SafeCFG until disable_safecfg(pipeline).

    `strength` multiplies the redirection: 0 is plain CFG, exactly. It acts in step i of n when
    floor(start n) <= i < ceil(stop n). `fingerprint` is the denoiser's where it is known, as a backbone's is;
    without it the weights are hashed. Other pipelines with this denoiser raise until they are enabled too.

    Raises ValueError for an unknown pipeline and a redirector of another base model. A guided run raises
    ValueError without guidance (guidance_scale of 1 or less) and for prompts of another shape than the
    redirector's, RuntimeError when the denoiser was not reached through the redirection.
    """
    check_options(strength, start, stop)
    if not {base.__name__ for base in type(pipeline).__mro__} & set(PIPELINES):
        raise ValueError(
            f"enable_safecfg does not know {type(pipeline).__name__}, only {', '.join(PIPELINES)}. A modular "
            "pipeline takes SafeCFGGuidance, others take negative_prompt_embeds from safecfg_negative"
        )
    denoiser = unwrap(called_denoiser(pipeline))
    check_base(hgr, denoiser, fingerprint)
    disable_safecfg(pipeline)
    gate = getattr(denoiser, _GATE, None)
    if gate is None or gate.denoiser is not denoiser:
        gate = _Gate(denoiser)
    gate.stand_before(called_denoiser(pipeline))
    gate.pipelines.add(pipeline)
    setattr(pipeline, _SETTINGS, _Settings(hgr, strength, start, stop, gate, type(pipeline)))
    pipeline.__class__ = _guided(type(pipeline))


def disable_safecfg(pipeline: DiffusionPipeline) -> None:
    """Back to plain CFG; nothing happens where SafeCFG is not enabled."""
    settings = getattr(pipeline, _SETTINGS, None)
    if settings is None:
        return
    pipeline.__class__ = settings.plain
    setattr(pipeline, _SETTINGS, None)
    settings.gate.pipelines.discard(pipeline)
    if not settings.gate.pipelines:
        settings.gate.remove()


def safecfg_negative(backbone: Backbone, hgr: HGR, prompts: Sequence[str]) -> Conditioning:
    """HGR(c), N rows: `negative_prompt_embeds=` and `negative_pooled_prompt_embeds=` for a pipeline.

    The null conditioning is encoded in a batch of N as the pipeline does, so that an untrained redirector
    gives plain CFG bit for bit. Raises ValueError when the redirector belongs to another base model.
    """
    hgr.check_base(backbone.fingerprint)
    return redirect(hgr, backbone.encode_prompts(prompts), backbone.null(len(prompts)))


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


@dataclass
class _Settings:
    """What a guided pipeline carries."""

    hgr: HGR
    strength: float
    start: float
    stop: float
    gate: "_Gate"
    plain: type[DiffusionPipeline]

    @contextmanager
    def run(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Open the gate for one call of the pipeline; RuntimeError when nothing went through."""
        module = called_denoiser(pipeline)
        if unwrap(module) is not self.gate.denoiser:
            raise RuntimeError(
                "the pipeline has another denoiser than enable_safecfg has seen: call enable_safecfg again"
            )
        run, outer = _Run(pipeline, self), self.gate.run
        self.gate.stand_before(module)
        self.gate.run = run
        try:
            yield
        finally:
            self.gate.run = outer
        if not run.calls:
            raise RuntimeError(
                "the pipeline reached its denoiser past SafeCFG, so these pictures were drawn without it: "
                "call disable_safecfg(pipeline) if that is what you want"
            )


def _guided(plain: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """A pipeline class whose calls are guided runs; it keeps its name, under which diffusers saves it."""

    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        with getattr(self, _SETTINGS).run(self):
            return plain.__call__(self, *args, **options)

    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (plain,), {"__call__": call, **names})


class _Gate:
    """What stands before a denoiser: redirects the calls of a guided run and refuses all others."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.pipelines: weakref.WeakSet[DiffusionPipeline] = weakref.WeakSet()
        self.run: _Run | None = None
        self._step_aside: Callable[[], None] = lambda: None
        setattr(denoiser, _GATE, self)

    def __deepcopy__(self, memo: object) -> "_Gate":
        return self

    def stand_before(self, module: nn.Module) -> None:
        """Stand where the pipeline calls the denoiser now: it may have been compiled since the last run."""
        self._step_aside()
        self._step_aside = intercept(module, self.admit)

    def remove(self) -> None:
        self._step_aside()
        delattr(self.denoiser, _GATE)

    def admit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the denoiser is to get."""
        if self.run is not None:
            return self.run.redirect(args, kwargs)
        if self.pipelines:
            raise RuntimeError(
                "this denoiser is guided by SafeCFG in one pipeline and was called from elsewhere: call "
                "enable_safecfg on the pipeline that you use too, or disable_safecfg on the other one"
            )
        return kwargs


class _Run:
    """One call of a guided pipeline."""

    def __init__(self, pipeline: DiffusionPipeline, settings: _Settings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.memory = Memory()
        self.calls = 0
        self.first: int | None = None

    def redirect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of one denoiser call with the negative half redirected, once per prompt batch."""
        self.calls += 1
        if kwargs.get("skip_layers") is not None:  # skip-layer guidance: a call with no negative half
            return kwargs
        if not self.pipeline.do_classifier_free_guidance:
            raise ValueError(no_guidance(self.pipeline.guidance_scale, "call disable_safecfg(pipeline)"))
        if not self._acts(kwargs["timestep"] if "timestep" in kwargs else args[1]):
            return kwargs
        given = read(kwargs)
        return write(kwargs, self.memory.recall((given.embeds, given.pooled), lambda: self._joined(given)))

    def _joined(self, given: Conditioning) -> Conditioning:
        half = len(given) // 2
        negative, positive = given.select(slice(0, half)), given.select(slice(half, None))
        return cat([redirect(self.settings.hgr, positive, negative, self.settings.strength), positive])

    def _acts(self, timestep: Tensor) -> bool:
        start, stop = self.settings.start, self.settings.stop
        if (start, stop) == (0, 1):  # spares the device a look at the timestep
            return True
        found = (self.pipeline.scheduler.timesteps == timestep.flatten()[0]).nonzero()
        if not len(found):
            raise RuntimeError(
                f"timestep {timestep.flatten()[0].item()} is none of the scheduler's, so its place among "
                f"the steps is unknown: leave start {start} and stop {stop} at 0 and 1"
            )
        step = int(found[0])
        self.first = step if self.first is None else self.first
        return acts(step - self.first, self.pipeline.num_timesteps, start, stop)


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


def read(kwargs: dict[str, Any]) -> Conditioning:
    """The conditioning that a pipeline gives its denoiser; SDXL and SD 3 keep the pooled part elsewhere."""
    pooled = kwargs.get("pooled_projections")
    if pooled is None:
        pooled = (kwargs.get("added_cond_kwargs") or {}).get("text_embeds")
    return Conditioning(kwargs["encoder_hidden_states"], pooled)


def write(kwargs: dict[str, Any], conditioning: Conditioning) -> dict[str, Any]:
    """The denoiser's arguments with another conditioning, each part where `read` found it."""
    changed: dict[str, Any] = {**kwargs, "encoder_hidden_states": conditioning.embeds}
    if kwargs.get("pooled_projections") is not None:
        changed["pooled_projections"] = conditioning.pooled
    elif conditioning.pooled is not None:
        changed["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": conditioning.pooled}
    return changed


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
            f"{error}. A model in another precision, quantised or with a LoRA fused into it counts as "
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
    return weights_fingerprint(_Weights(weights))


class _Weights(nn.Module):
    """A state dict where a module is asked for."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def state_dict(self, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self.weights


def intercept(
    module: nn.Module, change: Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]
) -> Callable[[], None]:
    """Change the keyword arguments of a module's calls, compiled or not; returns what ends it."""
    compiled = module._compiled_call_impl
    if compiled is None:

        def hook(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (args, change(args, kwargs)) if called is module else None

        return module.register_forward_pre_hook(hook, with_kwargs=True).remove

    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(*args, **change(args, kwargs))

    def restore() -> None:
        if module._compiled_call_impl is call:
            module._compiled_call_impl = compiled

    # Module.compile() has compiled the hooks of that time into the call: a later one is never run.
    module._compiled_call_impl = call
    return restore


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside of torch.compile's wrapper."""
    inner = getattr(module, "_orig_mod", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else module


def called_denoiser(pipeline: DiffusionPipeline) -> nn.Module:
    """The UNet or transformer as the pipeline calls it, compiled or not."""
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
