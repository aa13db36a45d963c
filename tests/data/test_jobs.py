"""Jobs of a prompt file: texts, seeds that hang on nothing else, the other columns, and what is dropped."""

import json
from pathlib import Path

import pandas as pd
import pytest

from safetune.data.jobs import Job, chunks, read_jobs


def seeds(jobs: list[Job]) -> list[tuple[str, int]]:
    return sorted((job.text, job.seed) for job in jobs)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,category,seed\na cat,,\na dog,weapons,7\na fox,,\na cat,,\n")
    return path


def test_every_prompt_with_its_columns(csv: Path) -> None:
    jobs = read_jobs(csv)
    assert [job.text for job in jobs] == ["a cat", "a dog", "a fox", "a cat"]
    assert [job.number for job in jobs] == [0, 1, 2, 3]
    assert [job.columns for job in jobs] == [{"category": c} for c in ("", "weapons", "", "")]


def test_the_files_own_seed_is_honoured(csv: Path) -> None:
    jobs = read_jobs(csv, copies=2)
    dog = [job.seed for job in jobs if job.text == "a dog"]
    assert dog[0] == 7 and dog[1] != 7
    assert dog == [job.seed for job in read_jobs(csv, copies=2, seed=1) if job.text == "a dog"]


def test_a_seed_hangs_on_seed_text_and_copy_alone(csv: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.csv"
    lines = csv.read_text().splitlines()
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert seeds(read_jobs(csv, copies=3)) == seeds(read_jobs(turned, copies=3))
    assert set(seeds(read_jobs(csv))) < set(seeds(read_jobs(csv, copies=3)))
    assert len({job.seed for job in read_jobs(csv, copies=3)}) == 12
    free = [job.seed for job in read_jobs(csv) if job.text != "a dog"]
    other = [job.seed for job in read_jobs(csv, seed=1) if job.text != "a dog"]
    assert not set(free) & set(other)


def test_seeds_stay_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a cat\n")
    # sha256 of '[0, "a cat", 0]', first four bytes
    assert read_jobs(tmp_path / "one.txt")[0].seed == 0xCD2306CD


def test_text_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\n\n  a \u00e4 dog \na nude 15 year old\n".encode() + b"caf\xe9\n")
    with caplog.at_level("INFO"):
        jobs = read_jobs(path)
    assert [job.text for job in jobs] == ["a cat", "a ä dog"]
    assert [job.columns for job in jobs] == [{}, {}]
    assert "rows read: 5, prompts kept: 2" in caplog.text and "nude" not in caplog.text


def test_ages_in_sexual_prompts_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a nude schoolgirl"}, {"prompt": "a cat"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [job.text for job in read_jobs(path)] == ["a cat"]
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="no prompt is left"):
        read_jobs(path)


def test_columns_are_such_as_json_holds_and_every_row_has_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    frame = pd.DataFrame(
        {
            "caption": ["a cat", "a dog"],
            "rating": [0.5, float("nan")],
            "made": [pd.Timestamp("2026-01-02")] * 2,
            "text": ["taken", "taken"],
            "file_name": ["x.png", "y.png"],
        }
    )
    frame.to_parquet(path)
    first, second = read_jobs(path, column="caption")
    assert first.columns == {"rating": 0.5, "made": "2026-01-02 00:00:00"}
    assert second.columns["rating"] is None
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a cat", "style": "oil"}\n{"prompt": "a dog"}\n')
    assert [job.columns for job in read_jobs(lines)] == [{"style": "oil"}, {"style": None}]


def test_mistakes(csv: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'promt' \(did you mean prompt\?\)"):
        read_jobs(csv, column="promt")
    with pytest.raises(ValueError, match="no such file"):
        read_jobs(tmp_path / "none.txt")
    (tmp_path / "some.txt").write_text("a cat")
    with pytest.raises(ValueError, match="has no columns for layout 'i2p'"):
        read_jobs(tmp_path / "some.txt", layout="i2p")


def test_chunks() -> None:
    jobs = [Job(number, "a cat", number, {}) for number in range(5)]
    assert [[job.number for job in chunk] for chunk in chunks(jobs, 2)] == [[0, 1], [2, 3], [4]]
