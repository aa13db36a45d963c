"""`safetune attack`: attacks on one target, each written when it is done, so that a killed run goes on."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safetune.evaluation.attacks.case import Case, case_from_prompts
from safetune.evaluation.attacks.report import Judge
from safetune.evaluation.attacks.suite import (
    ATTACKS,
    AttackOptions,
    check_names,
    lacking,
    reports,
    run_attacks,
)
from safetune.evaluation.attacks.target import Target, load_target
from safetune.evaluation.attacks.tinysd import tinysd_case, tinysd_judge
from safetune.evaluation.baselines.concepts import tinysd_concepts
from safetune.evaluation.methods import Method
from safetune.files import check_settings, write_json
from safetune.finetuning.judging import draws_tinysd, judge_facts
from safetune.prompts import read_prompts
from safetune.runs import versions

logger = logging.getLogger(__name__)


def attack(
    out: Path,
    model: str = "tinysd",
    method: Method | None = None,
    names: Sequence[str] = (),
    prompts: Path | None = None,
    layout: str = "plain",
    count: int = 32,
    options: AttackOptions | None = None,
    is_harmful: Judge | None = None,
    judge: dict[str, object] | None = None,
    device: torch.device | str = "cpu",
    guidance_scale: float = 5.0,
    steps: int = 10,
) -> dict[str, Any]:
    """Attack a base model with what defends it; returns and writes out/attacks.json, protocol included.

    `method` is the defence, none by default; the base without it is the reference. TinySD brings prompts,
    pictures, concepts and a judge; another model needs `prompts` (see safetune.prompts), `is_harmful` and
    `judge`, facts about it for the protocol. `names` empty: all attacks that the case has the material for.
    Attacks done under the same settings are read from `out`, not run again. ValueError for a folder of other
    settings, and as run_attacks.
    """
    reference = load_target(model, device=device, guidance_scale=guidance_scale, steps=steps)
    tinysd = draws_tinysd(reference.backbone)
    if not tinysd and (prompts is None or is_harmful is None):
        raise ValueError(f"{model} does not draw TinySD's world: give a file of harmful prompts and a judge")
    if is_harmful is None:
        is_harmful, judge = tinysd_judge(), {k: v for k, v in judge_facts().items() if k != "use"}
    options, method = options or AttackOptions(), method or Method("base")
    if options.finetuning_lr is None:
        options = replace(options, finetuning_lr=1e-4 if tinysd else 1e-5)
    if prompts is None:
        case = tinysd_case(reference.backbone, count, seed=options.seed)
    else:
        texts = read_prompts(prompts, layout).prompts[:count]
        case, kept = case_from_prompts(reference, texts, is_harmful, options.seed)
        logger.info("the base answers %.1f%% of the prompts harmfully: those are attacked", 100 * kept)
    target = load_target(
        model, method, device, guidance_scale, steps, concepts=tinysd_concepts() if tinysd else ()
    )
    names = list(names) or applicable(case, reference, guided=method.guided)
    check_names(names, case, reference)
    settings = protocol(target, case, options, judge, method)
    check_settings(out / "protocol.json", settings)
    write_json(out / "protocol.json", settings)
    done: dict[str, object] = {}
    for name in names:
        file = out / f"{name}.json"
        if not file.is_file():
            found = run_attacks(target, case, is_harmful, [name], options, reference)
            write_json(file, reports(found)[name])
        done[name] = json.loads(file.read_text(encoding="utf-8"))
    results = {"attacks": done, "protocol": settings, "versions": versions()}
    write_json(out / "attacks.json", results)
    return results


def applicable(case: Case, reference: Target, guided: bool) -> list[str]:
    """Names of the attacks that there is material for, and guidance to strip."""
    names = [name for name in ATTACKS if guided or name != "guidance-stripped"]
    return [name for name in names if not lacking(name, case, reference)]


def protocol(
    target: Target,
    case: Case,
    options: AttackOptions,
    judge: dict[str, object] | None,
    method: Method,
) -> dict[str, object]:
    """Everything that the rates depend on; no prompt's text."""
    backbone = target.backbone
    return {
        "denoiser_sha256": exact_hash(backbone.denoiser.state_dict()),
        "base": backbone.fingerprint,
        "hgr_sha256": None if method.hgr is None else sha256((method.hgr / "model.safetensors").read_bytes()),
        "negative_prompt": method.negative_prompt,
        "sld": method.sld,
        "judge": judge,
        "prompts": {"count": len(case.prompts), "sha256": sha256("\n".join(case.prompts).encode())},
        "seeds": list(case.seeds),
        "scheduler": type(backbone.pipeline.scheduler).__name__,
        "steps": target.steps,
        "guidance_scale": target.guidance_scale,
        "counting_unit": "prompt; a picture for text-free-inversion, a drawing for concept-inversion",
        "options": asdict(options),
    }


def sha256(content: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(content).hexdigest()


def exact_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values: a fingerprint keeps signs only, and a light adapter turns few."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
