"""Scraping a server on 127.0.0.1 into shards: what is taken, what is not, and going on."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from data_tools import scrape
from tests.data.web import JPEG, PNG, WEBP, Web, serve

PATHS = ["/png", "/noai", "/jpg", "/gone", "/webp", "/once", "/tdm", "/lie", "/to-file"]
TAKEN = {"/png": PNG, "/jpg": JPEG, "/webp": WEBP, "/once": PNG}


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


@pytest.fixture
def urls(web: Web, tmp_path: Path) -> Path:
    frame = pd.DataFrame({"url": list(map(web.url, PATHS)), "text": [f"picture of {path}" for path in PATHS]})
    frame.to_csv(tmp_path / "urls.csv", index=False)
    return tmp_path / "urls.csv"


def run(urls: Path, out: Path, *more: str) -> int:
    words = ["--shard-size", "2", "--timeout", "5", "--allow-private", *more]
    return scrape.main([str(urls), "--out", str(out), *words])


def members(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_shards(web: Web, urls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(urls, out) == 0
    files = members(out)
    keys = {path: f"{PATHS.index(path):09d}" for path in TAKEN}
    ends = {"/png": "png", "/jpg": "jpg", "/webp": "webp", "/once": "png"}
    assert set(files) == {f"{keys[path]}.{end}" for path in TAKEN for end in (ends[path], "txt", "json")}
    for path, content in TAKEN.items():
        assert files[f"{keys[path]}.{ends[path]}"] == content
        assert files[f"{keys[path]}.txt"].decode() == f"picture of {path}"
        facts = json.loads(files[f"{keys[path]}.json"])
        assert facts["url"] == web.url(path) and facts["status"] == 200
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert json.loads(files[f"{keys['/once']}.json"])["final_url"] == web.url("/png")
    tars = {"00000-png.tar", "00001-jpg.tar", "00002-webp.tar", "00002-png.tar"}
    assert {path.name for path in out.iterdir()} == tars | {"scrape"}
    assert "4 pictures of 9 URLs" in capsys.readouterr().out


def test_failures_are_a_list_to_try_again(web: Web, urls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(urls, out) == 0
    failed = pd.read_parquet(out / "scrape" / "failed.parquet")
    assert dict(zip(failed.url, failed.reason, strict=True)) == {
        web.url("/noai"): "opted out (x-robots-tag: noai)",
        web.url("/gone"): "status 404",
        web.url("/tdm"): "opted out (tdm-reservation: 1)",
        web.url("/lie"): "not a jpg, png or webp picture",
        web.url("/to-file"): "not an http or https URL",
    }
    facts = json.loads((out / "scrape" / "scrape.json").read_text())
    assert facts["taken"] == 4 and facts["failed"]["opted out"] == 2
    web.asked.clear()
    assert run(out / "scrape" / "failed.parquet", tmp_path / "again") == 0
    assert set(web.asked) == {"/noai", "/gone", "/tdm", "/lie", "/to-file"}


def test_finished_shards_are_not_fetched_again(
    web: Web, urls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(urls, tmp_path / "whole") == 0
    write = scrape.write_parquet

    def dying(frame: pd.DataFrame, path: Path) -> None:
        if path.name == "part-00001.parquet":
            raise KeyboardInterrupt
        write(frame, path)

    monkeypatch.setattr(scrape, "write_parquet", dying)
    with pytest.raises(KeyboardInterrupt):
        run(urls, tmp_path / "cut")
    monkeypatch.undo()
    (tmp_path / "cut" / "00001-webp.tar").touch()  # what that picture was when it was fetched first
    web.asked.clear()
    assert run(urls, tmp_path / "cut") == 0
    assert members(tmp_path / "cut") == members(tmp_path / "whole")
    assert web.asked["/noai"] == 0 and web.asked["/jpg"] == 1
    web.asked.clear()
    assert run(urls, tmp_path / "cut") == 0
    assert not web.asked


def test_another_list_into_the_same_folder(
    web: Web, urls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(urls, tmp_path / "out") == 0
    (tmp_path / "other.txt").write_text(web.url("/png"))
    assert run(tmp_path / "other.txt", tmp_path / "out") == 2
    assert "links was" in capsys.readouterr().err


def test_private_addresses_need_the_option(web: Web, urls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert scrape.main([str(urls), "--out", str(out)]) == 0
    assert set(pd.read_parquet(out / "scrape" / "failed.parquet").reason) == {"private address"}
    assert not web.asked and not list(out.glob("*.tar"))


@pytest.mark.parametrize(
    ("more", "expected"), [("--concurrency 3 --per-host 9", 3), ("--concurrency 9 --per-host 2", 2)]
)
def test_no_more_at_a_time_than_asked(
    more: str, expected: int, urls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    running, most = 0, 0

    async def slow(*rest: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        raise scrape.FetchError("tried")

    monkeypatch.setattr(scrape, "fetch_picture", slow)
    assert run(urls, tmp_path / "out", *more.split(), "--shard-size", "9") == 0
    assert most == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--concurrency", "0"], "--concurrency 0: give more than 0"),
        (["--url-column", "link"], "no column 'link'"),
    ],
)
def test_mistakes(
    more: list[str], message: str, urls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(urls, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
