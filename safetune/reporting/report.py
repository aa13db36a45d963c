"""report.html of a run: one file that opens offline, every picture and chart inside it."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from safetune.files import write_text
from safetune.reporting.grid import GridRow, order_rows, picture_uri
from safetune.reporting.plots import harm_histogram, rate_chart, score_histogram, time_chart
from safetune.reporting.pool import LABELS, PoolScores
from safetune.reporting.rates import (
    CELLS,
    CLEAN_ACCURACIES,
    CONDITIONS,
    MEASURES,
    NOT_MEASURED,
    average,
    format_percent,
    format_points,
    format_seconds,
    heldout_harm,
    look_up,
    read_number,
    read_rate,
)

AUROCS = {
    "auroc_prompt": "prompt score",
    "auroc_guidance": "guidance score",
    "auroc_image": "image score",
    "auroc_pair": "pair score (all evidence together)",
    "auroc_image_benign_caption": "image score, harmful pictures under benign captions",
}
SCORES = {
    "prompt_score": "Prompt score: the text alone",
    "guidance_score": "Guidance score: the pair as it would be guided",
    "image_score": "Image score: the picture alone",
    "pair_score": "Pair score: the evidence together",
}


def write_report(
    path: Path, results: Mapping[str, object], grid: Sequence[GridRow], pool: PoolScores, title: str
) -> None:
    """Write the self-contained HTML report of `results` (the content of results.json), whole or not at all.

    Blocks that `results` lacks read "not measured"; keys it has besides are listed, never dropped.
    """
    folder = files("safetune.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture_uri"] = picture_uri
    template = environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(folder.joinpath("report.js").read_text(encoding="utf-8")),
        not_measured=NOT_MEASURED,
        conditions=CONDITIONS,
        headline=describe_outcome(results),
        figures=[(key, name, format_percent(heldout_harm(results, key))) for key, name in CONDITIONS.items()],
        setting=_describe_setting(results),
        charts=_rate_charts(results),
        rates=_rate_table(results),
        rows=order_rows(grid),
        histograms=_histograms(pool),
        pool_size=len(pool.harm),
        confusion=_confusion(results),
        labels=_label_table(results),
        export=_scalars(results, "export", skip=()),
        **_time(results),
        protocol=look_up(results, "protocol"),
        everything=_to_json(results),
    )
    write_text(path, page)


def _to_json(results: Mapping[str, object]) -> str:
    """Indented JSON with flat lists on one line: a list of seeds or classes reads as one thing."""
    text = json.dumps(results, indent=1, default=str, ensure_ascii=False)
    return re.sub(r"\[\n[^\[\]{}]*\n\s*\]", lambda flat: re.sub(r"\n\s*", " ", flat[0]), text)


def describe_outcome(results: Mapping[str, object]) -> str:
    """The result in one sentence: harm rate on held-out prompts, and what clean prompts paid for it."""
    harm = {condition: heldout_harm(results, condition) for condition in CONDITIONS}
    if any(rate is None for rate in harm.values()):
        return "The harm rate on held-out prompts was not measured for every model: there is no headline."
    percents = [f"{100 * rate.mean:.1f}%" for rate in harm.values() if rate is not None]
    sentence = (
        f"On held-out harmful prompts the judge finds a harmful object in {percents[0]} of the base model’s "
        f"pictures, in {percents[1]} with SafeCFG and in {percents[2]} after fine-tuning"
    )
    clean = {name: read_rate(results, "lora", "clean", name) for name in CLEAN_ACCURACIES}
    before = {name: read_rate(results, "base", "clean", name) for name in CLEAN_ACCURACIES}
    change = format_points(average(list(before.values())), average(list(clean.values())))
    if change == NOT_MEASURED:
        return f"{sentence}; the accuracy on clean prompts was not measured."
    each = ", ".join(f"{name} {format_points(before[name], clean[name])}" for name in CLEAN_ACCURACIES)
    return f"{sentence}, while accuracy on clean prompts changes by {change} points ({each})."


def _describe_setting(results: Mapping[str, object]) -> list[tuple[str, str]]:
    """What a reader must know before reading a number: judge, seeds, prompts, sampler."""
    protocol = look_up(results, "protocol")
    seeds = look_up(protocol, "seeds")
    facts = {
        "Judge": look_up(protocol, "judge", "name"),
        "Judge threshold": look_up(protocol, "judge", "threshold"),
        "Seeds": ", ".join(str(seed) for seed in seeds) if isinstance(seeds, Sequence) else None,
        "Scheduler": look_up(protocol, "scheduler"),
        "Steps": look_up(protocol, "steps"),
        "Guidance scale": look_up(protocol, "guidance_scale"),
    }
    return [(name, NOT_MEASURED if value is None else str(value)) for name, value in facts.items()]


def _rate_charts(results: Mapping[str, object]) -> list[tuple[str, Markup]]:
    charts = []
    for measure, title in (
        ("harm_rate", "Harmful prompts: harmful object found (lower is better)"),
        ("subject", "Harmful prompts: subject right"),
        ("place", "Harmful prompts: place right"),
    ):
        rates = {
            condition: [read_rate(results, condition, "harmful", cell, measure) for cell in CELLS]
            for condition in CONDITIONS
        }
        charts.append((title, rate_chart(f"harmful-{measure}", list(CELLS.values()), rates, title)))
    names = [*CLEAN_ACCURACIES, "harm_rate"]
    rates = {key: [read_rate(results, key, "clean", name) for name in names] for key in CONDITIONS}
    title = "Clean prompts: everything else kept"
    charts.append((title, rate_chart("clean", [*CLEAN_ACCURACIES, "harmful found"], rates, title)))
    return charts


def _rate_table(results: Mapping[str, object]) -> list[dict[str, object]]:
    """One group a cell of the evaluation, one line a measure, one column a condition, and the change."""
    groups: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = [
        (f"Harmful prompts, {name}", cell, ("harmful", cell), ("harm_rate", "subject", "place"))
        for cell, name in CELLS.items()
    ]
    groups.append(("Clean prompts", "clean", ("clean",), (*CLEAN_ACCURACIES, "harm_rate")))
    table: list[dict[str, object]] = []
    for title, cell, keys, measures in groups:
        lines = []
        for measure in measures:
            rates = {condition: read_rate(results, condition, *keys, measure) for condition in CONDITIONS}
            texts = [format_percent(rate) for rate in rates.values()]
            lines.append((MEASURES[measure], texts, format_points(rates["base"], rates["lora"])))
        table.append({"title": title, "size": _describe_size(results, cell), "lines": lines})
    return table


def _describe_size(results: Mapping[str, object], cell: str) -> str:
    count = look_up(results, "protocol", "prompts", cell, "count")
    seeds = look_up(results, "protocol", "seeds")
    if count is None:
        return ""
    return f"{count} prompts" + (f" × {len(seeds)} seeds" if isinstance(seeds, Sequence) else "")


def _histograms(pool: PoolScores) -> list[tuple[str, Markup]]:
    if not len(pool.harm):
        return []
    charts = [
        (SCORES.get(name, name), score_histogram(name, values, pool.truth))
        for name, values in pool.scores.items()
    ]
    harm = harm_histogram(pool.harm, pool.truth, pool.thresholds)
    return [*charts, ("Calibrated harm, with both thresholds", harm)]


def _confusion(results: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of truth, cells of (count, share of the row) in the order of LABELS; empty where not measured."""
    rows = []
    for truth in ("clean", "harmful"):
        counts = [read_number(results, "labels", "confusion", truth, label) for label in LABELS]
        total = sum(count or 0 for count in counts)
        if total:
            cells = [(f"{count or 0:.0f}", f"{100 * (count or 0) / total:.1f}%") for count in counts]
            rows.append((truth, cells))
    return rows


def _label_table(results: Mapping[str, object]) -> list[tuple[str, str]]:
    lines = []
    for key, name in AUROCS.items():
        value = read_number(results, "labels", key)
        lines.append((f"AUROC, {name}", NOT_MEASURED if value is None else f"{value:.3f}"))
    accuracy = read_number(results, "labels", "accuracy")
    text = NOT_MEASURED if accuracy is None else f"{100 * accuracy:.1f}%"
    lines.append(("Accuracy of the labels after unsupervised calibration", text))
    return lines + _scalars(results, "labels", skip=(*AUROCS, "accuracy"))


def _scalars(results: Mapping[str, object], block: str, skip: Sequence[str]) -> list[tuple[str, str]]:
    """The plain values of a block under their own names; nested ones stand in the page's last section."""
    values = look_up(results, block)
    if not isinstance(values, Mapping):
        return []
    return [
        (str(key).replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in values.items()
        if key not in skip and not isinstance(value, Mapping | list | tuple)
    ]


def _time(results: Mapping[str, object]) -> dict[str, object]:
    block = look_up(results, "seconds")
    stages = block if isinstance(block, Mapping) else {}
    seconds = {str(key): read_number(stages, key) for key in stages}
    known = {key: value for key, value in seconds.items() if value is not None and key != "total"}
    if not known:
        return {"time_chart": None, "time_total": NOT_MEASURED}
    total = seconds.get("total") or sum(known.values())
    return {"time_chart": time_chart(known), "time_total": format_seconds(total)}
