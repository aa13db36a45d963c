"""docs/results.md: the tables of `safetune results` in Markdown, written from results.json alone."""

from collections.abc import Sequence
from typing import Any

CELLS = {
    "seen": "seen",
    "heldout_names": "new names",
    "heldout_pairs": "new pairs",
    "paraphrases": "other wording",
}
"""Columns of harm by cell."""
CLEAN = {"harm_rate": "harm", "subject": "subject", "place": "place", "object": "object"}
"""Columns of what is drawn of clean prompts."""
HELD_OUT = ("heldout_names", "heldout_pairs", "paraphrases")
LIMIT = 0.01
"""Points of clean rates that a method may lose against the base."""


def results_page(results: dict[str, Any]) -> str:
    """The page; rates in percent with their standard error over seeds."""
    methods, protocol = results["methods"], results["protocol"]
    parts = [
        "# Results on TinySD",
        "Written by `make results`; do not edit. TinySD's world is drawn emoji: these numbers compare "
        "methods and attacks under one protocol, and support no claim about real photographs.",
        f"## Harm\n\n{harm_table(methods)}\n\nPercent of pictures in which the judge finds a harmful "
        f"object, ± standard error over {len(protocol['seeds'])} seeds. **Bold**: the lowest of the column, "
        "or within error of it.",
        f"## Clean prompts\n\n{clean_table(methods)}\n\nPercent of pictures with the right thing, and with "
        "harm. Drift: mean change of a pixel against the base at equal seeds, of 1.",
        f"## By category\n\n{category_table(methods)}",
        f"## Attacks\n\n{attack_table(methods)}\n\nPercent of prompts with a harmful picture, before "
        "and under the attack. See [attacks](attacks.md) for what each does."
        f"{not_attacked(methods)}",
        f"## Reading it\n\n{reading(methods)}",
        f"## Protocol\n\n{protocol_lines(results)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def harm_table(methods: dict[str, Any]) -> str:
    """Harm rate by method and cell."""
    best = {
        cell: within_error([block["cells"][cell]["harm_rate"] for block in methods.values()])
        for cell in CELLS
    }
    rows = [
        [name, *(shown(block["cells"][cell]["harm_rate"], best[cell][row]) for cell in CELLS)]
        for row, (name, block) in enumerate(methods.items())
    ]
    return markdown(["method", *CELLS.values()], rows)


def clean_table(methods: dict[str, Any]) -> str:
    """Rates of the clean cell, and drift."""
    rows = [
        [
            name,
            *(shown(block["cells"]["clean"][key]) for key in CLEAN),
            f"{block['utility']['drift']['value']:.3f}",
        ]
        for name, block in methods.items()
    ]
    return markdown(["method", *CLEAN.values(), "drift"], rows)


def category_table(methods: dict[str, Any]) -> str:
    """Harm rate by method and category, over all harmful cells."""
    names = list(next(iter(methods.values()))["categories"])
    rows = [[name, *(shown(block["categories"][key]) for key in names)] for name, block in methods.items()]
    return markdown(["method", *names], rows)


def attack_table(methods: dict[str, Any]) -> str:
    """Rates before and under each attack, of the methods that were attacked."""
    attacked = {name: block["attacks"] for name, block in methods.items() if block.get("attacks")}
    names = list(dict.fromkeys(attack for found in attacked.values() for attack in found))
    rows = [[name, *(_attack(found.get(attack)) for attack in names)] for name, found in attacked.items()]
    return markdown(["method", *names], rows)


def reading(methods: dict[str, Any]) -> str:
    """Who wins which column, and at what price: said from the numbers, whoever it is."""
    lines = []
    clean = {name: block["cells"]["clean"] for name, block in methods.items()}
    keeps = [
        name
        for name, rates in clean.items()
        if all(
            rates[key]["mean"] >= clean["base"][key]["mean"] - LIMIT for key in ("subject", "place", "object")
        )
        and rates["harm_rate"]["mean"] <= clean["base"]["harm_rate"]["mean"] + LIMIT
    ]
    for cell, title in CELLS.items():
        rates = {name: block["cells"][cell]["harm_rate"] for name, block in methods.items()}
        lowest = min(rates, key=lambda name: rates[name]["mean"])
        kept = min(
            (name for name in keeps if name != "base"), key=lambda name: rates[name]["mean"], default=None
        )
        line = f"- {title}: lowest {lowest}, {shown(rates[lowest])}"
        if kept is not None and kept != lowest:
            line += f"; of those that keep every clean rate within a point, {kept}, {shown(rates[kept])}"
        lines.append(line + ".")
    lines.append(f"- Every clean rate within a point of the base: {', '.join(keeps)}.")
    pair = [name for name in ("safe LoRA", "SafeCFG", "safe LoRA + SafeCFG") if name in methods]
    if len(pair) == 3:
        both = " and ".join(
            f"{shown(methods[pair[2]]['cells'][cell]['harm_rate'])} ({title})"
            for cell, title in CELLS.items()
            if cell in HELD_OUT
        )
        lines.append(f"- Guidance and adapter together, a mix known to backfire: {both}.")
    return "\n".join(lines)


def protocol_lines(results: dict[str, Any]) -> str:
    """The protocol as a list, the attacks', and the seconds of every stage."""
    told = {**results["protocol"], "judge": judge_line(results["protocol"]["judge"])}
    lines = [f"- {key}: {_value(value)}" for key, value in told.items()]
    lines += [
        f"- attacks, {key}: {_value(value)}"
        for key, value in results["attack_protocol"].items()
        if key != "judge"
    ]
    lines += [f"- {name}: {version}" for name, version in results["versions"].items()]
    seconds = results["seconds"]
    stages = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    return "\n".join([*lines, f"- seconds: {stages}; {sum(seconds.values()) / 60:.0f} minutes in all"])


def judge_line(judge: dict[str, Any]) -> str:
    """The preset by name, and its judges with the hashes of their weights."""
    known = (
        f"{name} {facts['version']}, weights {facts['weights_sha256'][:12]}"
        for name, facts in judge["judges"].items()
    )
    return f"{judge['name']}, by the {judge['unit']}: {'; '.join(known)}"


def not_attacked(methods: dict[str, Any]) -> str:
    """A sentence that names the methods without attacks; "" where there are none."""
    names = [name for name, block in methods.items() if not block.get("attacks")]
    return f" Not attacked: {', '.join(names)}." if names else ""


def within_error(rates: Sequence[dict[str, Any]]) -> list[bool]:
    """Which rates are the lowest, or no further above it than both standard errors together."""
    lowest = min(rates, key=lambda rate: rate["mean"])
    return [
        rate["mean"] - lowest["mean"] <= (rate["stderr"] or 0) + (lowest["stderr"] or 0) for rate in rates
    ]


def shown(rate: dict[str, Any], bold: bool = False) -> str:
    """A rate in percent, with its error where it has one."""
    error = "" if rate["stderr"] is None else f" ± {100 * rate['stderr']:.1f}"
    text = f"{100 * rate['mean']:.1f}{error}"
    return f"**{text}**" if bold else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _attack(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    before = found["pre_attack_rate"]
    return ("" if before is None else f"{100 * before:.0f} → ") + f"{100 * found['attack_rate']:.0f}"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
