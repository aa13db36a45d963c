"""`safetune baseline`: make a denoiser by another method, for `--denoiser` of evaluate and attack."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from safetune.backbone import Backbone, load_backbone
from safetune.evaluation.baselines.concepts import (
    concepts_sha256,
    read_concepts,
    tinysd_concepts,
    tinysd_preserved,
)
from safetune.evaluation.baselines.esd import TINYSD_ESD, EsdSettings, Variant, train_esd
from safetune.evaluation.baselines.uce import UceSettings, edit
from safetune.export.adapters import save_denoiser
from safetune.files import replace_folder, write_json
from safetune.finetuning.judging import draws_tinysd
from safetune.runs import git_commit, versions

logger = logging.getLogger(__name__)

VARIANTS: dict[str, Variant] = {"esd-x": "esd-x", "esd-u": "esd-u"}
BASELINES = ("uce", *VARIANTS)


@dataclass(frozen=True)
class Told:
    """What a baseline is told: concepts to erase, and what UCE preserves."""

    concepts: list[str]
    preserve: list[str]


def train_baseline(
    name: str,
    out: Path,
    model: str = "tinysd",
    concepts: Path | None = None,
    preserve: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Make a denoiser by "uce", "esd-x" or "esd-u", write it to `out` with run.json, and return that.

    `concepts` and `preserve` are text files with one a line; a model that draws TinySD's world has its own.
    `steps` are ESD's. A killed ESD run goes on, by the same command, from a hidden file beside `out`. Raises
    ValueError before anything is trained: an unknown name, an `out` that exists, a model without concepts.
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; allowed: {', '.join(BASELINES)}")
    if out.exists():
        raise ValueError(f"{out} is there already: give a new folder as --out")
    if name == "uce" and steps is not None:
        raise ValueError("UCE is solved at once and has no steps: leave --steps out")
    if name != "uce" and preserve is not None:
        raise ValueError(f"{name} preserves nothing by name: leave --preserve out")
    backbone = load_backbone(model)
    tinysd = draws_tinysd(backbone)
    told = told_of(tinysd, concepts, preserve)
    backbone.pipeline.to(device)
    started = time.perf_counter()
    if name == "uce":
        uce = UceSettings()
        edit(backbone, told.concepts, told.preserve, uce)
        settings = asdict(uce)
    else:
        settings = run_esd(
            backbone, told.concepts, VARIANTS[name], esd_settings(name, tinysd, steps), seed, out
        )
    facts = {
        "baseline": name,
        "model": model,
        "base": backbone.fingerprint,
        "settings": settings,
        "seed": seed,
        "concepts": listed(told.concepts),
        "preserve": listed(told.preserve if name == "uce" else []),
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "commit": git_commit(),
    }
    with replace_folder(out) as folder:
        save_denoiser(backbone.denoiser, folder)
        write_json(folder / "run.json", facts)
    state_file(out, name).unlink(missing_ok=True)
    logger.info("%s of %d concepts took %.1f s: %s", name, len(told.concepts), facts["seconds"], out)
    return facts


def told_of(tinysd: bool, concepts: Path | None, preserve: Path | None) -> Told:
    """Words of the files, or TinySD's; ValueError where there are neither."""
    if concepts is None and not tinysd:
        raise ValueError("this model does not draw TinySD's world: give --concepts, a file with one a line")
    kept = [] if concepts is not None or preserve is not None else tinysd_preserved()
    return Told(
        tinysd_concepts() if concepts is None else read_concepts(concepts),
        kept if preserve is None else read_concepts(preserve),
    )


def esd_settings(name: str, tinysd: bool, steps: int | None) -> EsdSettings:
    """The paper's settings, or those for TinySD."""
    settings = TINYSD_ESD[VARIANTS[name]] if tinysd else EsdSettings()
    return settings if steps is None else replace(settings, steps=steps)


def run_esd(
    backbone: Backbone, concepts: Sequence[str], variant: Variant, settings: EsdSettings, seed: int, out: Path
) -> dict[str, Any]:
    """Train, going on from the state of a killed run; returns the settings and the loss at both ends."""
    losses = train_esd(backbone, concepts, variant, settings, seed, state_file(out, variant))
    tenth = max(1, len(losses) // 10)
    ends = {"loss_first": losses[:tenth], "loss_last": losses[-tenth:]}
    means = {key: round(sum(values) / len(values), 6) for key, values in ends.items() if values}
    return {**asdict(settings), **means}


def state_file(out: Path, name: str) -> Path:
    """Where a training's state lies until it is done."""
    return out.with_name(f".{out.name}.{name}.safetensors")


def listed(words: Sequence[str]) -> dict[str, object]:
    """A list in run.json: its length and hash, never its text."""
    return {"count": len(words), "sha256": concepts_sha256(words)}
