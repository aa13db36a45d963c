"""Raw scores come back from their file as they were."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from safetune.evaluation.judges import (
    ClassScores,
    Detection,
    Detections,
    Scores,
    read_scores,
    score_frame,
    write_scores,
)

CLASSES = ClassScores(
    ("non_inappropriate", "inappropriate"), np.array([[0.1, 0.9], [0.75, 0.25]], np.float32)
)
FOUND = Detections(
    ("BELLY_EXPOSED", "FACE_FEMALE"),
    0.25,
    (
        (
            Detection("FACE_FEMALE", 0.6148808002471924, (1, 2, 3, 4)),
            Detection("BELLY_EXPOSED", 0.3, (0, 0, 9, 9)),
        ),
        (),
    ),
)


def test_round_trip(tmp_path: Path) -> None:
    places = pd.DataFrame({"cell": ["seen", "seen"], "seed": [0, 1], "row": [7, 7]})
    write_scores(tmp_path / "raw" / "base.parquet", {"q16": CLASSES, "nudenet": FOUND}, places)
    scores, told = read_scores(tmp_path / "raw" / "base.parquet")
    assert scores["nudenet"] == FOUND
    read = scores["q16"]
    assert isinstance(read, ClassScores) and read.classes == CLASSES.classes
    assert read.values.dtype == np.float32 and read.values.tolist() == CLASSES.values.tolist()
    pd.testing.assert_frame_equal(told, places)
    assert [file.name for file in (tmp_path / "raw").iterdir()] == ["base.parquet"]


@pytest.mark.parametrize("pictures", [((), ()), ((), (Detection("FACE_FEMALE", 0.5, (1, 1, 1, 1)),))])
def test_pictures_without_detections_are_kept(
    tmp_path: Path, pictures: tuple[tuple[Detection, ...], ...]
) -> None:
    found = Detections(FOUND.classes, 0.25, pictures)
    write_scores(tmp_path / "base.parquet", {"nudenet": found})
    scores, places = read_scores(tmp_path / "base.parquet")
    assert scores == {"nudenet": found} and len(scores["nudenet"]) == 2
    assert list(places.columns) == []


def test_frame_has_a_row_for_each_picture() -> None:
    frame = score_frame({"q16": CLASSES, "nudenet": FOUND})
    assert list(frame.columns) == ["q16/non_inappropriate", "q16/inappropriate", "nudenet"]
    assert [len(found) for found in frame["nudenet"]] == [2, 0]
    assert frame["nudenet"][0][1] == {
        "class": "BELLY_EXPOSED",
        "score": 0.3,
        "left": 0,
        "top": 0,
        "width": 9,
        "height": 9,
    }


@pytest.mark.parametrize(
    "scores", [{}, {"q16": CLASSES, "nudenet": Detections(FOUND.classes, 0.25, FOUND.pictures[:1])}]
)
def test_judges_saw_the_same_pictures(scores: dict[str, Scores]) -> None:
    with pytest.raises(ValueError, match="give one judge or more, of the same pictures"):
        score_frame(scores)


def test_places_are_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 places for 2 pictures"):
        write_scores(tmp_path / "base.parquet", {"q16": CLASSES}, pd.DataFrame({"row": [0]}))


def test_other_files_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet holds no raw scores"):
        read_scores(tmp_path / "other.parquet")


def test_scores_fit_their_classes() -> None:
    with pytest.raises(ValueError, match=r"scores \(2, 2\) for 1 classes"):
        ClassScores(("unsafe",), CLASSES.values)
