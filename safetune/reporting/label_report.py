"""labels/report.html: what the labeler found in a pool, in one file that opens offline."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from safetune.files import write_text
from safetune.labeling.calibration import FEWEST, Mixture
from safetune.labeling.finished import read_finished
from safetune.labeling.review import describe_review, read_decisions
from safetune.reporting.grid import picture_uri
from safetune.reporting.label_plots import SCALES, label_histogram, mixture_histogram
from safetune.reporting.pool import LABELS

Pictures = Callable[[Sequence[str]], Mapping[str, Image.Image]]
"""Keys -> picture of each; a key without a picture may be missing."""
BANDS = {
    "uncertain": "Uncertain: harm nearest to one half",
    "harmful": "Harmful: drawn at random",
    "clean": "Clean: drawn at random",
}
SAMPLES = 12
"""Pairs shown of each band."""
SIDE = 256
"""Largest side of a picture on the page, in pixels."""


def write_label_report(labels_folder: Path, pictures: Pictures, path: Path | None = None) -> Path:
    """Write the page of a folder of labels to `path` (report.html in that folder), whole or not at all.

    `pictures` is asked once, for the few pairs that are shown, and not at all where no picture was scored.
    ValueError when the folder holds no finished labels.
    """
    labels, summary = read_finished(labels_folder)
    samples = {band: _sample(labels, band) for band in BANDS}
    pictured = bool(labels.image_score.notna().any())
    shown = pictures([key for rows in samples.values() for key in rows.key]) if pictured else {}
    folder = files("safetune.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("label_report.html.j2").read_text(encoding="utf-8"))
    decisions = read_decisions(labels_folder)
    rejected, converted = _read_rejected(labels_folder)
    page = template.render(
        title=f"Labels of {labels_folder.resolve().parent.name}",
        style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(folder.joinpath("report.js").read_text(encoding="utf-8")),
        pairs=len(labels),
        pictured=pictured,
        one_kind=summary["one_kind"],
        review=describe_review(labels, decisions) if decisions else "",
        figures=[(name, int((labels.label == name).sum())) for name in LABELS],
        charts=_charts(labels, summary),
        categories=_categories(labels[labels.label == "harmful"]),
        rejected=rejected,
        converted=converted,
        bands=[(band, title, _cards(samples[band], shown)) for band, title in BANDS.items()],
        everything=json.dumps(summary, indent=1, ensure_ascii=False),
    )
    path = path or labels_folder / "report.html"
    write_text(path, page)
    return path


def _sample(labels: pd.DataFrame, band: str) -> pd.DataFrame:
    """Up to SAMPLES rows of a label, the same ones each time: those of the uncertain nearest to 0.5."""
    rows = labels[labels.label == band]
    if band == "uncertain":
        return rows.iloc[np.argsort((rows.harm - 0.5).abs().to_numpy(), kind="stable")[:SAMPLES]]
    return rows.sample(min(SAMPLES, len(rows)), random_state=0).sort_values("harm", ascending=False)


def _cards(rows: pd.DataFrame, pictures: Mapping[str, Image.Image]) -> list[dict[str, Any]]:
    """What the page shows of each row; the picture as a data URI, None where there is none."""
    return [
        {
            **{name: row[name] for name in ("text", "harm", "evidence", "category")},
            "guarded": row["label"] != "clean",
            "picture": _shrink(pictures[row["key"]]) if row["key"] in pictures else None,
        }
        for row in rows.to_dict("records")
    ]


def _shrink(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return picture_uri(small)


def _charts(labels: pd.DataFrame, summary: Mapping[str, Any]) -> list[tuple[str, Markup, str]]:
    """Title, chart and remark of each histogram; a score that nobody computed has none."""
    thresholds = _thresholds(summary)
    mixtures = {name: _mixture(value) for name, value in summary["mixtures"].items() if value}
    charts = []
    for name, mixture in mixtures.items():
        scores = labels[f"{name}_score"].to_numpy(np.float64)
        fitted = np.full(len(labels), True)
        if name == "image" and "prompt" in mixtures:
            silent = _silent(labels, mixtures["prompt"])
            fitted = silent if silent.sum() >= FEWEST else fitted
        chart = mixture_histogram(name, scores, fitted, mixture, thresholds)
        remark = (
            "" if fitted.all() else "Darker: pairs whose caption is silent; the mixture is fitted to them."
        )
        if mixture.one_kind:
            remark += " One component fits best: this score splits nothing."
        charts.append((f"{name.capitalize()} score", chart, remark.strip()))
    harm = label_histogram(labels.harm.to_numpy(np.float64), labels.label.to_numpy(object), thresholds)
    title = "Harm: the larger evidence of both scores" if len(mixtures) > 1 else "Harm"
    return [*charts, (title, harm, "")]


def _thresholds(summary: Mapping[str, Any]) -> tuple[float, float]:
    """clean_below and harmful_above, which stand with the other options of calibration."""
    options = summary["calibration"]
    return options["clean_below"], options["harmful_above"]


def _mixture(value: Mapping[str, Any]) -> Mixture:
    """A mixture of labels.json, whose tuples are lists there."""
    means, stds, weights = (tuple(value[part]) for part in ("means", "stds", "weights"))
    return Mixture(means, stds, weights, value.get("harmful", False))


def _silent(labels: pd.DataFrame, prompt: Mixture) -> NDArray[np.bool_]:
    """Pairs (N,) whose caption is no evidence: the image's mixture is fitted to these."""
    return prompt.log_odds(SCALES["prompt"][0](labels.prompt_score.to_numpy(np.float64))) < 0


def _categories(harmful: pd.DataFrame) -> list[tuple[str, int, float, int, int]]:
    """Category, pairs, share of the harmful ones, found by caption, found by picture; the most first."""
    lines = []
    for category, count in harmful.category.value_counts().items():
        evidence = harmful.evidence[harmful.category == category]
        by_prompt, by_image = (int((evidence == kind).sum()) for kind in ("prompt", "image"))
        lines.append((str(category), int(count), count / len(harmful), by_prompt, by_image))
    return lines


def _read_rejected(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Reasons and counts, the most first: of inputs without a label, and of those converted to be scored."""
    path = folder / "rejected.parquet"
    if not path.is_file():
        return [], []
    frame = pd.read_parquet(path)
    kept = frame.kept.astype(bool) if "kept" in frame else pd.Series(False, index=frame.index)
    rejected, converted = (
        [(str(reason), int(count)) for reason, count in rows.reason.value_counts().items()]
        for rows in (frame[~kept], frame[kept])
    )
    return rejected, converted
