"""Lists of URLs: formats, columns, and rows that are dropped and counted."""

from pathlib import Path

import pandas as pd
import pytest

from safetune.data.urls import Link, read_links

ROWS = {"url": ["http://a/1.png", "http://a/2.png"], "text": ["a cat", "a dog"]}
LINKS = [Link("http://a/1.png", "a cat"), Link("http://a/2.png", "a dog")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path, frame = tmp_path / f"urls.{suffix}", pd.DataFrame(ROWS)
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert read_links(path) == LINKS
    assert read_links(path, text_column="none") == [Link(link.url, "") for link in LINKS]


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://a/1.png\n\n http://a/2.png \nhttp://a/1.png\n")
    assert read_links(tmp_path / "urls.txt") == [Link(link.url, "") for link in LINKS]


def test_dropped_rows_are_counted_and_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "urls.csv"
    path.write_bytes(
        b"url,text\nhttp://a/1.png,a cat\n,no url\nhttp://a/1.png,again\nhttp://a/3.png,nude schoolgirl\n"
        b"one cell\nhttp://a/2.png,caf\xe9\n"
    )
    with caplog.at_level("INFO"):
        assert read_links(path) == [Link("http://a/1.png", "a cat"), Link("http://a/2.png", "")]
    assert "rows read: 6, URLs kept: 2; dropped 2 without a URL, 1 repeated, 1 naming" in caplog.text
    assert "schoolgirl" not in caplog.text


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "urls.csv"
    path.write_text("urls,text\n")
    with pytest.raises(ValueError, match=r"no column 'url' \(did you mean urls\?\).*Give --url-column"):
        read_links(path)
    with pytest.raises(ValueError, match="no URL is left of 0 rows"):
        read_links(path, url_column="urls")
    with pytest.raises(ValueError, match="no such file"):
        read_links(tmp_path / "none.txt")
