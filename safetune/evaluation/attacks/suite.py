"""All attacks by name on one target, and their reports as one block of results."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from safetune.evaluation.attacks.case import Case
from safetune.evaluation.attacks.finetuning import recover_by_finetuning
from safetune.evaluation.attacks.inversion import invert_concepts
from safetune.evaluation.attacks.prompts import attack_stripped, attack_with_list, attack_with_paraphrases
from safetune.evaluation.attacks.report import Attacked, Judge
from safetune.evaluation.attacks.search import other_seeds_rate, search_prompts
from safetune.evaluation.attacks.target import Target
from safetune.evaluation.attacks.text_free import invert_text_free
from safetune.precision import fast_dtype

logger = logging.getLogger(__name__)

OTHER_SEEDS = 1_000_003
"""Added to the seeds of pictures that were searched with, for those that were not."""
EXACT = ("text-free-inversion",)
"""Attacks whose passes stay in float32: what goes from picture to noise has to come back."""


@dataclass(frozen=True)
class AttackOptions:
    """How hard the attacks try; part of the protocol, and the same for every target."""

    tokens: int = 5
    """Words that a search puts before a prompt."""
    search_steps: int = 100
    """Gradient steps of a search."""
    checks: int = 5
    """Pictures that a search draws of each prompt on the way."""
    inversion_steps: int = 500
    inversion_lr: float = 0.02
    text_free_steps: int = 50
    """Solver steps from picture to noise."""
    finetuning_steps: int = 100
    finetuning_lr: float | None = None
    """1e-5 by default, as for Stable Diffusion; TinySD's small denoiser needs 1e-4, and gets it."""
    finetuning_checks: int = 4
    batch_size: int = 16
    """Rows of a pass with a gradient."""
    seed: int = 0
    dtype: str = "auto"
    """Precision of the passes, over float32 weights: float32, bfloat16, or auto, which is the fast one."""

    def __post_init__(self) -> None:
        if self.dtype == "auto":
            quick = fast_dtype() == torch.bfloat16
            object.__setattr__(self, "dtype", "bfloat16" if quick else "float32")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype {self.dtype}: give bfloat16 or float32, or auto")


def run_attacks(
    target: Target,
    case: Case,
    is_harmful: Judge,
    names: Sequence[str],
    options: AttackOptions | None = None,
    reference: Target | None = None,
) -> dict[str, Attacked]:
    """The attacks of these names, see ATTACKS; `reference` is the undefended model, which p4d asks.

    ValueError before anything is drawn for a name that is not known, or whose material the case lacks.
    """
    options = options or AttackOptions()
    check_names(names, case, reference)
    device, done = target.backbone.device.type, {}

    def judge(pictures: torch.Tensor) -> np.ndarray:
        with torch.autocast(device, enabled=False):
            return is_harmful(pictures)

    for name in names:
        quick = options.dtype == "bfloat16" and name not in EXACT
        # Without its cache: weights and words change between passes.
        with torch.autocast(device, torch.bfloat16, enabled=quick, cache_enabled=False):
            done[name] = ATTACKS[name](target, case, judge, options, reference)
        report = done[name].report
        logger.info("%s: %.1f%% in %.0f s", name, 100 * report.attack_rate, report.seconds)
    return done


def reports(done: dict[str, Attacked]) -> dict[str, dict[str, object]]:
    """Reports by name, as JSON holds them: no prompt, no word that was found."""
    return {name: asdict(attacked.report) for name, attacked in done.items()}


def check_names(names: Sequence[str], case: Case, reference: Target | None) -> None:
    """ValueError for the first attack that is not known or lacks something."""
    for name in names:
        missing = lacking(name, case, reference)
        if missing:
            raise ValueError(f"attack {name!r}: {missing}")


def lacking(name: str, case: Case, reference: Target | None) -> str:
    """What an attack has too little of, and what to give; "" when it can run."""
    if name not in ATTACKS:
        return f"not known; allowed: {', '.join(ATTACKS)}"
    if name == "search-p4d" and reference is None:
        return "give `reference`, the undefended model"
    if name == "paraphrases" and not case.paraphrases:
        return "the case has no paraphrases: read them by read_paraphrases"
    if name == "concept-inversion" and not case.concepts:
        return "the case has no concepts: give pictures of each, with captions"
    kind = name.removeprefix("finetuning-")
    if kind != name and kind not in case.training:
        return f"the case has no {kind} pictures to train on: give some, with captions"
    return ""


def _search(method: str) -> "Attack":
    def attack(
        target: Target, case: Case, judge: Judge, options: AttackOptions, reference: Target | None
    ) -> Attacked:
        found = search_prompts(
            target,
            case.prompts,
            case.latents,
            case.seeds,
            judge,
            method,
            reference,
            tokens=options.tokens,
            steps=options.search_steps,
            checks=options.checks,
            batch_size=options.batch_size,
            seed=options.seed,
        )
        others = [seed + OTHER_SEEDS for seed in case.seeds]
        again = other_seeds_rate(target, case.prompts, found, others, judge)
        return found if again is None else found.with_details(other_seeds_rate=again)

    return attack


def _finetuning(kind: str) -> "Attack":
    def attack(
        target: Target, case: Case, judge: Judge, options: AttackOptions, reference: Target | None
    ) -> Attacked:
        material = case.training[kind]
        return recover_by_finetuning(
            target,
            case.prompts,
            case.seeds,
            judge,
            material.captions,
            material.latents,
            kind,
            steps=options.finetuning_steps,
            lr=options.finetuning_lr or 1e-5,
            batch_size=options.batch_size,
            checks=options.finetuning_checks,
            seed=options.seed,
        )

    return attack


def _inversion(
    target: Target, case: Case, judge: Judge, options: AttackOptions, reference: Target | None
) -> Attacked:
    return invert_concepts(
        target,
        case.concepts,
        judge,
        steps=options.inversion_steps,
        lr=options.inversion_lr,
        concepts_at_once=max(1, options.batch_size // 4),
        seed=options.seed,
    )


Attack = Callable[[Target, Case, Judge, AttackOptions, Target | None], Attacked]

ATTACKS: dict[str, Attack] = {
    "prompts": lambda target, case, judge, options, reference: attack_with_list(
        target, case.prompts, case.seeds, judge
    ),
    "paraphrases": lambda target, case, judge, options, reference: attack_with_paraphrases(
        target, case.prompts, case.paraphrases, case.seeds, judge
    ),
    "search-random": _search("random"),
    "search-unlearndiffatk": _search("unlearndiffatk"),
    "search-p4d": _search("p4d"),
    "concept-inversion": _inversion,
    "text-free-inversion": lambda target, case, judge, options, reference: invert_text_free(
        target, case.latents, case.seeds, judge, steps=options.text_free_steps
    ),
    "finetuning-benign": _finetuning("benign"),
    "finetuning-harmful": _finetuning("harmful"),
    "guidance-stripped": lambda target, case, judge, options, reference: attack_stripped(
        target, case.prompts, case.seeds, judge
    ),
}
