"""Attacks by prompts alone: lists from a file, other words for the same, and the guidance left out."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safetune.evaluation.attacks.report import Attacked, AttackReport, Judge, Stopwatch, rate
from safetune.evaluation.attacks.target import Target
from safetune.prompts import names_age_in_sexual_prompt
from safetune.tinysd.vocabulary import OBJECT_BY_KEY
from safetune.tinysd.world import Scene, recaption


def attack_with_list(
    target: Target, prompts: Sequence[str], seeds: Sequence[int], is_harmful: Judge, name: str = "prompts"
) -> Attacked:
    """Draw each prompt of a list that was made to break models, once; read it by safetune.prompts."""
    watch = Stopwatch()
    pictures = target.draw(target.backbone.encode_prompts(prompts), seeds)
    harmful = is_harmful(pictures)
    report = AttackReport(name, len(prompts), None, rate(harmful), 0, 1, watch.seconds(), 0)
    return Attacked(report, harmful, pictures)


def attack_with_paraphrases(
    target: Target,
    prompts: Sequence[str],
    paraphrases: Sequence[Sequence[str]],
    seeds: Sequence[int],
    is_harmful: Judge,
) -> Attacked:
    """Draw every paraphrase of each prompt with the prompt's seed; one harmful picture breaks the prompt.

    details hold `each`, the share of harmful pictures over all paraphrases, which more tries do not raise.
    ValueError unless every prompt has paraphrases.
    """
    if len(prompts) != len(paraphrases) or not all(paraphrases):
        raise ValueError(f"{len(prompts)} prompts: give each a list of one or more paraphrases")
    watch = Stopwatch()
    pictures = target.draw(target.backbone.encode_prompts(prompts), seeds)
    before = is_harmful(pictures)
    owners = np.array([row for row, texts in enumerate(paraphrases) for _ in texts])
    texts = [text for group in paraphrases for text in group]
    drawn = target.draw(target.backbone.encode_prompts(texts), [seeds[owner] for owner in owners.tolist()])
    found = is_harmful(drawn)
    broken = np.bincount(owners, found, len(prompts)) > 0
    for owner in np.flatnonzero(broken & ~before):
        pictures[owner] = drawn[int(np.flatnonzero(found & (owners == owner))[0])]
    report = AttackReport(
        attack="paraphrases",
        count=len(prompts),
        pre_attack_rate=rate(before),
        attack_rate=rate(before | broken),
        steps=0,
        tries=1 + max(len(texts) for texts in paraphrases),
        seconds=watch.seconds(),
        seed=0,
        details={"each": rate(found)},
    )
    return Attacked(report, before | broken, pictures)


def attack_stripped(
    target: Target, prompts: Sequence[str], seeds: Sequence[int], is_harmful: Judge
) -> Attacked:
    """Leave the target's guidance out, as whoever runs the model can: what the weights alone still hold."""
    watch = Stopwatch()
    asked = target.backbone.encode_prompts(prompts)
    before = is_harmful(target.draw(asked, seeds))
    pictures = target.stripped().draw(asked, seeds)
    harmful = is_harmful(pictures)
    report = AttackReport(
        "guidance-stripped", len(prompts), rate(before), rate(harmful), 0, 1, watch.seconds(), 0
    )
    return Attacked(report, harmful, pictures)


def tinysd_paraphrases(scene: Scene, count: int, seed: int) -> list[str]:
    """Up to `count` other captions of a scene, none twice: names and templates drawn anew.

    Held-out names are among them: training never saw these, so they are for evaluation alone.
    """
    rng, found = np.random.default_rng(seed), {scene.caption: None}
    names = OBJECT_BY_KEY[scene.object].names if scene.object else ("",)
    for _ in range(20 * count * len(names)):
        if len(found) > count:
            break
        found[recaption(scene, rng, heldout_names=True).caption] = None
    return list(found)[1:]


def read_paraphrases(path: Path) -> tuple[list[str], list[list[str]]]:
    """Prompts and their paraphrases, in any language, from JSON lines {"prompt": str, "paraphrases": [str]}.

    ValueError names lines of another form, and sexual ones that name an age, by number and never their text.
    """
    prompts, paraphrases, bad = [], [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = _parse(line)
        if row is None or any(names_age_in_sexual_prompt(text) for text in (row[0], *row[1])):
            bad.append(number)
        else:
            prompts.append(row[0])
            paraphrases.append(row[1])
    if bad or not prompts:
        raise ValueError(
            f"{path}: lines {', '.join(map(str, bad[:10])) or '(none found)'} cannot be used: each must be "
            '{"prompt": "...", "paraphrases": ["...", ...]}, and nothing sexual that names an age'
        )
    return prompts, paraphrases


def _parse(line: str) -> tuple[str, list[str]] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or set(row) != {"prompt", "paraphrases"}:
        return None
    prompt, others = row["prompt"], row["paraphrases"]
    is_row = isinstance(prompt, str) and prompt.strip() and isinstance(others, list) and others
    return (prompt, others) if is_row and all(isinstance(o, str) and o.strip() for o in others) else None
