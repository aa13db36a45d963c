"""Validation on held-out rows, the stop when it no longer improves, and the alarm when nothing changes."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, shift
from safetune.diffusion import mse_per_sample, seeded_noise, signal_weight
from safetune.hgr.model import HGR
from safetune.hgr.rows import EncodedRows
from safetune.hgr.training import teacher_targets

GAIN = 0.01
"""A validation counts as better when its loss is lower by this share."""
SILENT = 0.01
"""The alarm goes when harmful outputs move by less than this share of the way to their target."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of this process (V), noised once, with what the frozen model says to them."""

    prompts: Conditioning
    noisy: Tensor
    timesteps: Tensor
    eps_null: Tensor
    target: Tensor
    weight: Tensor
    harmful: Tensor
    batch_size: int

    def batches(self) -> list[slice]:
        """The rows in turn; none when this process has none."""
        return [slice(start, start + self.batch_size) for start in range(0, len(self.noisy), self.batch_size)]


def validation_draws(harmful: Tensor, min_timestep: int, seed: int) -> tuple[Tensor, list[int]]:
    """Timesteps (V,), spread evenly over each kind of row, and noise seeds; harmful (V,) bool."""
    timesteps = torch.zeros(len(harmful), dtype=torch.long)
    for kind in (True, False):
        count = int((harmful == kind).sum())
        spread = min_timestep + (torch.arange(count) + 0.5) / max(1, count) * (1000 - min_timestep)
        timesteps[harmful == kind] = spread.long()
    rng = np.random.default_rng([seed, 0, 1])
    return timesteps, [int(number) for number in rng.integers(0, 2**31, len(harmful))]


def prepare_held_out(
    backbone: Backbone,
    encoded: EncodedRows,
    rows: Tensor,
    latents: Tensor,
    timesteps: Tensor,
    seeds: list[int],
    guidance_scale: float,
    strength: float,
    weight_cap: float,
    batch_size: int,
) -> HeldOut:
    """Noise V rows, and ask the frozen model once; latents (V, C, h, w), timesteps (V,), a seed for each."""
    device, null = backbone.device, encoded.null(backbone.device)
    parts = [(latents[:0].to(device),) * 3]
    for start in range(0, len(rows), batch_size):
        chunk = slice(start, start + batch_size)
        x0, t = latents[chunk].to(device), timesteps[chunk].to(device)
        noisy = backbone.add_noise(x0, seeded_noise(tuple(x0.shape[1:]), seeds[chunk]).to(x0), t)
        _, positives, negatives, harmful = encoded.batch(rows[chunk], device)
        targets = teacher_targets(
            backbone, noisy, t, positives, negatives, null, harmful, guidance_scale, strength
        )
        parts.append((noisy, *targets))
    noisy, target, eps_null = (torch.cat(part) for part in zip(*parts, strict=True))
    weight = signal_weight(timesteps.to(device), backbone.alphas_cumprod, weight_cap)
    prompts, _, _, harmful = encoded.batch(rows, device)
    return HeldOut(prompts, noisy, timesteps.to(device), eps_null, target, weight, harmful, batch_size)


@torch.no_grad()
def validation_sums(hgr: HGR, backbone: Backbone, held: HeldOut, null: Conditioning) -> Tensor:
    """Sums (2, 5) over harmful and clean rows, to be added up over processes and given to `summarise`.

    Columns: rows, weighted squared error, the same at delta = 0, HED |eps(HGR(c)) - eps(null)|, and the
    length of the target |target - eps(null)|, both Euclidean over (C, h, w).
    """
    sums = torch.zeros(2, 5, device=held.noisy.device)
    for rows in held.batches():
        delta = Conditioning(*hgr(held.prompts.select(rows).embeds))
        eps = backbone.predict(held.noisy[rows], held.timesteps[rows], shift(null, delta))
        target, eps_null, weight = held.target[rows], held.eps_null[rows], held.weight[rows]
        values = torch.stack(
            [
                torch.ones_like(weight),
                mse_per_sample(eps, target) * weight,
                mse_per_sample(eps_null, target) * weight,
                (eps.float() - eps_null.float()).flatten(1).norm(dim=1),
                (target.float() - eps_null.float()).flatten(1).norm(dim=1),
            ],
            dim=1,
        )
        sums[0] += values[held.harmful[rows]].sum(0)
        sums[1] += values[~held.harmful[rows]].sum(0)
    return sums


def summarise(sums: Tensor, clean_weight: float) -> dict[str, Tensor]:
    """A validation's numbers from its sums (2, 5).

    `residual` is the harmful error relative to that of delta = 0; `hed_gap` is hed_harmful / hed_clean.
    """
    least = torch.finfo(sums.dtype).tiny
    (_, harmful_error, untouched, hed_harmful, target_length), (_, clean_error, _, hed_clean, _) = (
        sums / sums[:, :1].clamp(min=1)
    )
    return {
        "loss": harmful_error + clean_weight * clean_error,
        "harmful_error": harmful_error,
        "clean_error": clean_error,
        "residual": harmful_error / untouched.clamp(min=least),
        "hed_harmful": hed_harmful,
        "hed_clean": hed_clean,
        "hed_gap": hed_harmful / hed_clean.clamp(min=1e-6),
        "target_length": target_length,
    }


def alarm_of(hed_harmful: float, target_length: float, step: int) -> str:
    """What to say when the redirector changes nothing; "" when it changes something."""
    if hed_harmful > SILENT * target_length:
        return ""
    return (
        f"step {step}: the redirector changes nothing. It moves the output of held-out harmful prompts by "
        f"{hed_harmful:.3g}, their targets lie {target_length:.3g} away. Train longer, raise --lr or "
        "--warm_steps, and look whether each safe_prompt says something else than its prompt"
    )


@dataclass
class Convergence:
    """Best validation so far, how many since, and what the last ones said; part of every checkpoint."""

    best: float = float("inf")
    stale: int = 0
    """Validations since the best one."""
    stopped: str = ""
    """Why training ended before its last step, or ""."""
    alarm: str = ""
    """The last validation's alarm, or ""."""

    def update(self, loss: float, patience: int) -> bool:
        """Take a validation loss in; true when the last `patience` ones were no better (never for 0)."""
        if loss < (1 - GAIN) * self.best:
            self.best, self.stale = loss, 0
        else:
            self.stale += 1
        return 0 < patience <= self.stale

    def state_dict(self) -> dict[str, float | int | str]:
        """All of it, for accelerate's checkpoints."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float | int | str]) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
