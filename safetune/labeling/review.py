"""A person's decisions about labels: what to look at first, kept on disk at once, laid over the labels."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

REVIEW_FILE = "review.parquet"
HARM = {"clean": 0.0, "harmful": 1.0}
"""Harm of a pair that a person decided."""
DECISIONS = (*HARM, "skip")
SCHEMA = pa.schema([("key", pa.string()), ("label", pa.string()), ("time", pa.string())])


def review_queue(labels: pd.DataFrame) -> pd.DataFrame:
    """The rows of `labels` in the order of review: the uncertain ones first, then the others.

    Within both, harm nearest to 0.5 comes first. Keys come back as strings.
    """
    order = np.lexsort(((labels.harm - 0.5).abs().to_numpy(), (labels.label != "uncertain").to_numpy()))
    return labels.assign(key=labels.key.astype(str)).iloc[order].reset_index(drop=True)


class Review:
    """The decisions in `folder`/review.parquet: columns key, label, time; the last word about a key counts.

    Nothing is held in memory: each call reads the file, and a decision is on disk when its call returns.
    Several pages may write to one folder.
    """

    def __init__(self, folder: Path, keys: Iterable[str]) -> None:
        self.path = folder / REVIEW_FILE
        self.keys = frozenset(keys)
        self.lock = FileLock(folder / f".{REVIEW_FILE}.lock")

    def record(self, key: str, label: str) -> None:
        """Append a decision; ValueError for an unknown key or a label that is none of DECISIONS."""
        if label not in DECISIONS:
            raise ValueError(f"decision {label!r}: a review says one of {', '.join(DECISIONS)}")
        if key not in self.keys:
            raise ValueError(f"the labels in {self.path.parent} hold no pair with key {key!r}")
        row = {"key": key, "label": label, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        with self.lock:
            _write_rows([*_read_rows(self.path), row], self.path)

    def undo(self) -> str | None:
        """Take the last decision back: the word before it counts again. Its key; None when there is none."""
        with self.lock:
            rows = _read_rows(self.path)
            if not rows:
                return None
            _write_rows(rows[:-1], self.path)
        return rows[-1]["key"]

    def decisions(self) -> dict[str, str]:
        """Key -> the last word about it, skipped pairs included."""
        return read_decisions(self.path.parent)


def read_decisions(folder: Path) -> dict[str, str]:
    """Key -> the last word about it in a folder of labels; empty where nobody reviewed."""
    return {row["key"]: row["label"] for row in _read_rows(folder / REVIEW_FILE)}


def apply_review(labels: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """A copy of `labels` whose reviewed pairs have the person's label, and harm 1.0 or 0.0 with it.

    Skipped pairs stay as they were. ValueError for a decision about a key that `labels` lacks.
    """
    decisions = read_decisions(folder)
    keys = labels.key.astype(str)
    unknown = sorted(set(decisions) - set(keys))
    if unknown:
        raise ValueError(
            f"{folder / REVIEW_FILE} decides about {len(unknown)} keys that the labels lack, such as "
            f"{unknown[0]!r}: it belongs to other data; move it away or label that data"
        )
    label = keys.map({key: word for key, word in decisions.items() if word in HARM})
    decided = label.notna()
    return labels.assign(
        label=labels.label.mask(decided, label), harm=labels.harm.mask(decided, label.map(HARM))
    )


def describe_review(labels: pd.DataFrame, decisions: dict[str, str]) -> str:
    """How many pairs a person decided, and how many of them against the labeler's sure word."""
    counts = Counter(decisions.values())
    before = dict(zip(labels.key.astype(str), labels.label, strict=True))
    against = sum(
        before.get(key) in HARM and before[key] != word for key, word in decisions.items() if word in HARM
    )
    return (
        f"{counts['clean']} clean, {counts['harmful']} harmful, {counts['skip']} skipped; "
        f"{against} against the label they had"
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    # By path, pyarrow opens the file twice, and another page may replace it in between.
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    missing = sorted(set(SCHEMA.names) - set(table.column_names))
    if missing:
        raise ValueError(f"{path} is no review: it lacks the columns {', '.join(missing)}")
    return table.select(SCHEMA.names).to_pylist()


def _write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """Written whole or not at all: who is killed here leaves the file as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    temporary.replace(path)
