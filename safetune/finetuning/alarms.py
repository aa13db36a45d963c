"""What stops a run that has gone wrong, or says at its end that it has changed nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning

SKIPPED_IN_A_ROW = 20
"""Steps of fp16 that may overflow one after another: the scale starts at 2 to the 16 and halves each time."""
SHOWN_KEYS = 8
"""Keys that an error names."""
SILENT = 0.01
"""The alarm goes when outputs moved by less than this share of the way to their targets."""
SAMPLED = 1024
"""Values of each trained tensor whose change is measured."""
UNCHANGED = 3
"""Exit status of a run that changed nothing."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is infinite or not a number."""


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Within the block nothing is dropped; the rest of the module stays in the mode that it is in.

    Denoisers have nothing else that a mode changes, and bitsandbytes repacks 4-bit weights in evaluation mode
    on some CPUs, after which they do not train any more.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout) and layer.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


class FiniteGuard:
    """Raises NonFiniteError on every process at once, before a bad step reaches the weights.

    Where all is well it costs no communication: a bad row on one process makes the gradient norm bad on all.
    Only under DeepSpeed, which steps inside the backward pass, the processes ask each other before it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.passes: list[tuple[Tensor, list[str]]] = []
        self.skipped = 0
        """Steps that fp16 has skipped so far."""
        self.in_a_row = 0

    def watch(self, step: int, loss: Tensor, keys: Sequence[str]) -> None:
        """Remember a pass before its backward: the loss (B,) of its rows and their keys."""
        finite = loss.detach().isfinite()
        self.passes.append((finite, list(keys)))
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            bad = self.accelerator.reduce((~finite).sum().float(), reduction="sum")
            if bad.item():
                self._fail(step)

    def check(self, step: int, grad_norm: Tensor) -> None:
        """Look at the gradient norm, the same on all processes, between the last backward and the step.

        In fp16 a norm may overflow now and then: the step is skipped and the loss scale lowered.
        """
        if grad_norm.isfinite().item():
            self.passes, self.in_a_row = [], 0
            return
        losses_are_finite = not self._bad_keys()
        if losses_are_finite and self.accelerator.mixed_precision == "fp16":
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            if self.in_a_row < SKIPPED_IN_A_ROW:
                self.passes = []
                return
        self._fail(step)

    def _bad_keys(self) -> list[str]:
        """Keys of the step's rows, of all processes, whose loss is not finite."""
        rows = [zip(keys, finite.tolist(), strict=True) for finite, keys in self.passes]
        mine = [key for pairs in rows for key, is_finite in pairs if not is_finite]
        return list(gather_object(mine))

    def _fail(self, step: int) -> None:
        """Every process calls it together."""
        bad, all_keys = self._bad_keys(), gather_object([key for _, keys in self.passes for key in keys])
        if bad:
            what = f"the loss of {len(bad)} of {len(all_keys)} pairs is infinite or not a number"
            advice = "look at these pairs; if they are sound, lower --lr"
        else:
            what = "the gradient is infinite or not a number"
            if self.in_a_row:
                what += f", {self.in_a_row} steps in a row"
            advice = "lower --lr"
        if self.accelerator.mixed_precision == "fp16":
            advice += ", or give --mixed_precision bf16 (or no)"
        named = bad or all_keys
        more = f" and {len(named) - SHOWN_KEYS} more" if len(named) > SHOWN_KEYS else ""
        raise NonFiniteError(
            f"step {step}: {what}. Keys: {', '.join(named[:SHOWN_KEYS])}{more}. Nothing of this step was "
            f"saved, the last checkpoint is whole: {advice}"
        )


class ChangeAlarm:
    """Whether training changed anything: weights, and outputs on a few fixed rows, before and after.

    Build it while the weights are those of step 0, on every process: once accelerate has prepared them and
    before a checkpoint is loaded. noisy (K, C, h, w), timesteps (K,) and K prompts are harmful rows, the same
    on every process; target (K, C, h, w) is the teacher's for them; `params` are those that train.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        backbone: Backbone,
        params: Sequence[nn.Parameter],
        noisy: Tensor,
        timesteps: Tensor,
        prompts: Conditioning,
        target: Tensor,
        denoiser: nn.Module,
    ) -> None:
        self.accelerator, self.backbone, self.params = accelerator, backbone, list(params)
        self.rows = noisy, timesteps, prompts
        self.start = [sample(param) for param in self.params]
        self.base = self._outputs(denoiser)
        self.way = _length(target.float() - self.base)

    def report(self, denoiser: nn.Module) -> dict[str, object]:
        """For run.json, after training; every process calls it.

        weight_change: length of the change of the trained weights (a sample of each) relative to theirs.
        prediction_change: how far outputs moved, relative to the way from the base's output to the target.
        changed: false when outputs moved by less than 1% of it; then `alarm` says what may be the cause.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        for param, start in zip(self.params, self.start, strict=True):
            sums += torch.stack([(sample(param) - start).pow(2).sum(), start.pow(2).sum()])
        sums = self.accelerator.reduce(sums.float().to(self.accelerator.device), reduction="sum")
        weights = float((sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)).sqrt())
        outputs = _length(self._outputs(denoiser) - self.base) / max(self.way, 1e-12)
        return {
            "changed": outputs >= SILENT,
            "weight_change": weights,
            "prediction_change": outputs,
            "alarm": None if outputs >= SILENT else _likely_cause(weights, outputs),
        }

    @torch.no_grad()
    def _outputs(self, denoiser: nn.Module) -> Tensor:
        """The denoiser's output (K, C, h, w) for the fixed rows, fp32."""
        with without_dropout(denoiser), self.accelerator.autocast():
            return self.backbone.predict(*self.rows, denoiser=denoiser).float()


def sample(param: nn.Parameter) -> Tensor:
    """Up to SAMPLED values, evenly spread, of what this process holds of a parameter; float64, on the CPU."""
    held = getattr(param, "ds_tensor", param.detach())  # ZeRO-3 keeps its share there
    held = held.to_local() if hasattr(held, "to_local") else held  # FSDP2
    flat = held.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.float64, copy=True)


def _length(rows: Tensor) -> float:
    """Mean Euclidean length of rows (K, C, h, w)."""
    return float(rows.flatten(1).norm(dim=1).mean())


def _likely_cause(weights: float, outputs: float) -> str:
    moved = f"outputs for harmful prompts moved by {outputs:.2%} of the way to their targets"
    if weights == 0:
        return (
            f"training changed nothing: no trained weight moved, {moved}. Either no gradient reached them, "
            "or their precision swallows such small steps: raise --lr, or give --base_dtype float32"
        )
    return (
        f"training changed next to nothing: weights moved by {weights:.2e} of their length, {moved}. Train "
        "longer, raise --lr, --alpha or --eta, or give --targets a larger group"
    )
