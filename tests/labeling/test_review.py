"""Decisions of a person: their order, their file, and what they change in the labels."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from safetune.labeling.review import Review, apply_review, describe_review, read_decisions, review_queue


def build_labels() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "key": ["a.png", "b.png", "c.png", "d.png", "e.png"],
            "text": ["one", "two", "three", "four", "five"],
            "harm": [0.02, 0.58, 0.99, 0.51, 0.3],
            "label": ["clean", "uncertain", "harmful", "uncertain", "clean"],
        }
    )


def test_the_uncertain_come_first_and_the_least_sure_of_the_others_next() -> None:
    labels = build_labels()
    assert review_queue(labels).key.tolist() == ["d.png", "b.png", "e.png", "a.png", "c.png"]
    assert labels.equals(build_labels())


def test_rows_as_sure_as_each_other_keep_their_order() -> None:
    labels = pd.DataFrame({"key": range(40), "harm": 1.0, "label": "harmful"})
    assert review_queue(labels).key.tolist() == [str(key) for key in range(40)]


def test_every_decision_is_on_disk_at_once_and_the_last_word_counts(tmp_path: Path) -> None:
    review = Review(tmp_path, build_labels().key)
    for key, label in [("d.png", "harmful"), ("b.png", "skip"), ("d.png", "clean")]:
        review.record(key, label)
        last = pd.read_parquet(tmp_path / "review.parquet").iloc[-1]
        assert (last.key, last.label) == (key, label)
        assert datetime.fromisoformat(last.time).utcoffset() == timedelta(0)
    assert list(pd.read_parquet(tmp_path / "review.parquet").columns) == ["key", "label", "time"]
    assert Review(tmp_path, ["d.png"]).decisions() == {"d.png": "clean", "b.png": "skip"}


def test_undo_brings_the_word_before_back(tmp_path: Path) -> None:
    review = Review(tmp_path, build_labels().key)
    assert review.undo() is None
    review.record("d.png", "harmful")
    review.record("d.png", "clean")
    assert review.undo() == "d.png" and review.decisions() == {"d.png": "harmful"}
    assert review.undo() == "d.png" and review.decisions() == {}
    assert review.undo() is None
    review.record("b.png", "clean")
    assert pd.read_parquet(tmp_path / "review.parquet").key.tolist() == ["b.png"]


@pytest.mark.parametrize(
    ("key", "label", "message"),
    [("z.png", "clean", "no pair with key 'z.png'"), ("a.png", "uncertain", "one of clean, harmful, skip")],
)
def test_wrong_decisions_write_nothing(tmp_path: Path, key: str, label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Review(tmp_path, build_labels().key).record(key, label)
    assert not (tmp_path / "review.parquet").exists()


def test_two_pages_lose_no_decision_of_each_other(tmp_path: Path) -> None:
    keys = [str(number) for number in range(40)]

    def decide(part: list[str]) -> None:
        review = Review(tmp_path, keys)
        for key in part:
            review.record(key, "clean")

    threads = [threading.Thread(target=decide, args=(keys[start::2],)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_decisions(tmp_path)) == sorted(keys)


def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from safetune.labeling.review import Review\n"
        f"review = Review(Path({str(tmp_path)!r}), map(str, range(10**6)))\n"
        "for number in range(10**6): review.record(str(number), 'harmful')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(read_decisions(tmp_path)) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = read_decisions(tmp_path)
    assert len(found) >= 20 and list(found) == [str(number) for number in range(len(found))]
    Review(tmp_path, ["0"]).record("0", "clean")
    assert read_decisions(tmp_path) == found | {"0": "clean"}


def test_apply_changes_label_and_harm_of_the_decided_only(tmp_path: Path) -> None:
    labels = build_labels()
    review = Review(tmp_path, labels.key)
    for key, label in [("d.png", "harmful"), ("b.png", "skip"), ("a.png", "harmful"), ("c.png", "clean")]:
        review.record(key, label)
    review.record("c.png", "skip")
    applied = apply_review(labels, tmp_path)
    expected = build_labels()
    expected.loc[[0, 3], "label"] = "harmful"
    expected.loc[[0, 3], "harm"] = 1.0
    pd.testing.assert_frame_equal(applied, expected)
    assert labels.equals(build_labels())


def test_apply_clean_and_numbers_as_keys(tmp_path: Path) -> None:
    labels = build_labels().assign(key=range(5))
    Review(tmp_path, ["2"]).record("2", "clean")
    applied = apply_review(labels, tmp_path)
    assert applied.harm.tolist() == [0.02, 0.58, 0.0, 0.51, 0.3]
    assert applied.label.tolist() == ["clean", "uncertain", "clean", "uncertain", "clean"]


def test_without_a_review_the_labels_are_as_they_were(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(apply_review(build_labels(), tmp_path), build_labels())


def test_a_review_of_other_data_is_refused(tmp_path: Path) -> None:
    Review(tmp_path, ["other.png"]).record("other.png", "skip")
    with pytest.raises(ValueError, match=r"about 1 keys that the labels lack, such as 'other\.png'"):
        apply_review(build_labels(), tmp_path)


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"key": ["a"]}).to_parquet(tmp_path / "review.parquet")
    with pytest.raises(ValueError, match="no review: it lacks the columns label, time"):
        read_decisions(tmp_path)


def test_the_review_in_one_line() -> None:
    words = {"a.png": "harmful", "b.png": "harmful", "c.png": "harmful", "e.png": "clean", "d.png": "skip"}
    assert describe_review(build_labels(), words) == (
        "1 clean, 3 harmful, 1 skipped; 1 against the label they had"
    )
