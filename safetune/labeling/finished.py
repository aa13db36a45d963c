"""The labels that a run of `safetune label` left, read without a model."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from safetune.labeling.review import apply_review

SCORES = ("prompt_score", "guidance_score", "image_score", "pair_score")


def read_finished(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All labels of a folder in order, and the content of its labels.json.

    Keys come as strings, scores that were not computed as NaN. ValueError when the folder holds no finished
    labels.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts or not (folder / "labels.json").is_file():
        raise ValueError(f"{folder} holds no finished labels: run `safetune label DATA --hgr DIR` first")
    labels = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    scores = {name: pd.to_numeric(labels[name]).astype("float64") for name in SCORES}
    return labels.assign(key=labels.key.astype(str), **scores), read_summary(folder)


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a folder's labels.json."""
    summary: dict[str, Any] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return summary


def read_labels(folder: Path) -> pd.DataFrame:
    """All labels of a folder in order, a person's decisions laid over the labeler's."""
    labels, _ = read_finished(folder)
    return apply_review(labels, folder)


def labelled_kind(folder: Path) -> str:
    """What the labels of a folder are of: pairs, prompts or images."""
    return str(read_summary(folder).get("options", {}).get("kind", "pairs"))


def check_redirector(folder: Path, fingerprint: str) -> None:
    """ValueError when the labels of a folder were written with another redirector than the one named."""
    found = read_summary(folder).get("hgr_fingerprint", fingerprint)
    if found != fingerprint:
        raise ValueError(
            f"the labels in {folder} come from the redirector {found}, the one given is {fingerprint}: give "
            "that one as --hgr, or run `safetune label` again"
        )
