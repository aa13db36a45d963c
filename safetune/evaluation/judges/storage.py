"""Raw scores as a table of one row for each picture, so that any rule can count them again later."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from safetune.evaluation.judges.base import ClassScores, Detection, Detections, Scores
from safetune.files import write_parquet

KEY = "safetune.judges"
"""Where the file tells, in its metadata, what the columns of each judge are."""


def score_frame(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """One row for each picture: a column `judge/class` for every class of a classifier, and for a detector a
    column `judge` with the list of what it found, empty where it found nothing.

    ValueError when the judges saw different numbers of pictures.
    """
    counts = {name: len(one) for name, one in scores.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"scores of {counts} pictures: give one judge or more, of the same pictures")
    columns: dict[str, object] = {}
    for name, one in scores.items():
        if isinstance(one, Detections):
            columns[name] = [[_as_record(found) for found in picture] for picture in one.pictures]
        else:
            columns |= {f"{name}/{label}": one.values[:, k] for k, label in enumerate(one.classes)}
    return pd.DataFrame(columns)


def write_scores(path: Path, scores: Mapping[str, Scores], places: pd.DataFrame | None = None) -> None:
    """Write a parquet file whole or not at all.

    `places` are columns of the same length that go before the scores, such as cell, seed and row.
    """
    frame = score_frame(scores)
    if places is not None:
        if len(places) != len(frame):
            raise ValueError(f"{len(places)} places for {len(frame)} pictures: give one for each")
        frame = pd.concat([places.reset_index(drop=True), frame], axis=1)
    frame.attrs[KEY] = {name: _describe(one) for name, one in scores.items()}
    write_parquet(frame, path)


def read_scores(path: Path) -> tuple[dict[str, Scores], pd.DataFrame]:
    """Scores by judge, and the columns that stand before them; ValueError for a file without scores."""
    frame = pd.read_parquet(path)
    if KEY not in frame.attrs:
        raise ValueError(f"{path} holds no raw scores: give a file that write_scores wrote")
    scores: dict[str, Scores] = {}
    read: list[str] = []
    for name, told in frame.attrs[KEY].items():
        classes = tuple(told["classes"])
        if told["floor"] is None:
            columns = [f"{name}/{label}" for label in classes]
            scores[name] = ClassScores(classes, frame[columns].to_numpy(np.float32))
        else:
            columns = [name]
            pictures = tuple(tuple(_as_detection(found) for found in picture) for picture in frame[name])
            scores[name] = Detections(classes, told["floor"], pictures)
        read += columns
    places = frame.drop(columns=read)
    places.attrs = {}
    return scores, places


def _describe(scores: Scores) -> dict[str, object]:
    floor = scores.floor if isinstance(scores, Detections) else None
    return {"classes": list(scores.classes), "floor": floor}


def _as_record(found: Detection) -> dict[str, object]:
    left, top, width, height = found.box
    return {
        "class": found.label,
        "score": found.score,
        "left": left,
        "top": top,
        "width": width,
        "height": height,
    }


def _as_detection(record: Mapping[str, object]) -> Detection:
    left, top, width, height = (int(str(record[key])) for key in ("left", "top", "width", "height"))
    return Detection(str(record["class"]), float(str(record["score"])), (left, top, width, height))
