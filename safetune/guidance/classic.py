"""SafeCFG for classic pipelines: their calls of the denoiser get a redirected negative half."""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from safetune.conditioning import Conditioning, cat
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

PIPELINES = tuple(
    f"StableDiffusion{family}{task}Pipeline"
    for family in ("", "XL", "3")
    for task in ("", "Img2Img", "Inpaint")
)
"""Classic pipelines that give their denoiser the negative half of a batch first, and no third part."""

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


def called_denoiser(pipeline: DiffusionPipeline) -> nn.Module:
    """The UNet or transformer as the pipeline calls it, compiled or not."""
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
