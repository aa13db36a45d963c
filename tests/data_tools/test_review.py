"""The review page: a real process, a real browser, and review.parquet on disk after each key."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2 as httpx
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from data_tools.review import main
from safetune.labeling.review import apply_review

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '"><script>window.escaped = 1</script><img src="http://127.0.0.1:9/out">'
HARM = {"uncertain": [0.45, 0.5, 0.58], "clean": [0.01, 0.3], "harmful": [0.99]}
COLOURS = ["crimson", "teal", "goldenrod", "slateblue", "olive", "maroon"]


def write_pool(folder: Path, caption: str = "a test pattern", pictures: bool = True) -> Path:
    """Six pictures with captions, and labels made by hand: three uncertain, two clean, one harmful."""
    rows, lines = [], []
    (folder / "labels").mkdir(parents=True)
    for label, harms in HARM.items():
        for harm in harms:
            name = f"{len(rows):06d}.png"
            picture = Image.new("RGB", (320, 200), COLOURS[len(rows)])
            ImageDraw.Draw(picture).text((20, 80), f"picture {len(rows)}", "white", font_size=40)
            picture.save(folder / name)
            text = f"{caption}, number {len(rows)}"
            lines.append(json.dumps({"file_name": name, "text": text}))
            rows.append({"key": name, "text": text, "harm": harm, "label": label})
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    labels = pd.DataFrame(rows).assign(
        prompt_score=1.5, guidance_score=0.2, image_score=2.25 if pictures else None, pair_score=0.1
    )
    labels = labels.assign(evidence="image", concept="knife", category="weapons")
    labels.to_parquet(folder / "labels" / "part-00000.parquet", index=False)
    (folder / "labels" / "labels.json").write_text(json.dumps({"options": {"text_column": "text"}}))
    return folder


class Served:
    """`data_tools/review.py` in a process of its own, on a port it found."""

    def __init__(self, repository: Path, pool: Path, *options: str) -> None:
        command = [sys.executable, str(repository / "data_tools" / "review.py"), str(pool), "--port", "0"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.first_line)
        assert found, self.first_line
        self.url = found[0]

    def stop(self) -> str:
        """Ctrl+C; the last line it prints."""
        self.process.send_signal(signal.SIGINT)
        try:
            output, _ = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return output


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool")


def open_page(browser: "Browser", url: str, complaints: list[str]) -> "Page":
    """The page; what it complains of, and every request that leaves the server, is added to `complaints`."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((url, "data:")) else complaints.append(request.url),
    )
    page.goto(url)
    return page


def blur(page: "Page") -> str:
    return str(page.locator(".picture img").evaluate("image => getComputedStyle(image).filter"))


def decisions(pool: Path) -> list[tuple[str, str]]:
    frame = pd.read_parquet(pool / "labels" / "review.parquet")
    return list(zip(frame.key, frame.label, strict=True))


def press(page: "Page", key: str) -> None:
    with page.expect_navigation():
        page.keyboard.press(key)


@pytest.mark.browser
def test_review_by_keys(browser: "Browser", repository: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", caption=HOSTILE)
    served, complaints = Served(repository, pool), []
    try:
        page = open_page(browser, served.url, complaints)
        assert "3 pairs" in served.first_line
        assert page.locator("#progress").inner_text() == "0 of 3 uncertain"
        assert page.locator(".words").inner_text() == f"{HOSTILE}, number 1"
        assert (
            "1.5" in page.locator(".facts").inner_text() and "weapons" in page.locator(".facts").inner_text()
        )

        assert blur(page) == "blur(32px)"
        page.locator(".picture").click()
        assert blur(page) == "none"
        page.keyboard.press("b")
        assert blur(page) == "blur(32px)"
        page.keyboard.press("b")
        assert blur(page) == "none"
        page.keyboard.press("Control+c")
        assert not (pool / "labels" / "review.parquet").exists()

        press(page, "h")
        assert decisions(pool) == [("000001.png", "harmful")]
        assert page.locator("#progress").inner_text() == "1 of 3 uncertain"
        assert blur(page) == "blur(32px)", "the next picture is blurred again"
        press(page, "C")
        assert decisions(pool)[1:] == [("000000.png", "clean")]
        press(page, "u")
        assert decisions(pool) == [("000001.png", "harmful")]
        assert page.locator(".words").inner_text().endswith("number 0")
        press(page, "s")
        with page.expect_navigation():
            page.get_by_role("button", name="Clean").click()
        assert decisions(pool) == [
            ("000001.png", "harmful"), ("000000.png", "skip"), ("000002.png", "clean")
        ]  # fmt: skip
        assert page.locator("h1").inner_text() == "Everything here is reviewed"
        assert page.locator("#progress").inner_text() == "3 of 3 uncertain"
        page.keyboard.press("h")
        assert len(decisions(pool)) == 3
        assert page.evaluate("window.escaped") is None
        assert complaints == []
    finally:
        last = served.stop()
    assert "1 clean, 1 harmful, 1 skipped" in last and served.process.returncode == 0
    labels = apply_review(pd.read_parquet(pool / "labels" / "part-00000.parquet"), pool / "labels")
    assert labels.harm.tolist() == [0.45, 1.0, 0.0, 0.01, 0.3, 0.99]


@pytest.mark.browser
def test_a_killed_review_goes_on_where_it_was(browser: "Browser", repository: Path, pool: Path) -> None:
    served, complaints = Served(repository, pool, "--all", "--no-blur"), []
    page = open_page(browser, served.url, complaints)
    assert blur(page) == "none"
    assert page.locator("#progress").inner_text() == "0 of 3 uncertain, 0 of 3 others"
    for key in "chcc":
        press(page, key)
    served.process.kill()
    served.process.wait()
    assert [key for key, _ in decisions(pool)] == ["000001.png", "000000.png", "000002.png", "000004.png"]
    served = Served(repository, pool)
    try:
        page.goto(served.url)
        assert page.locator("h1").inner_text() == "Everything here is reviewed"
        press(page, "u")
        assert page.locator(".words").inner_text() == "a test pattern, number 4", (
            "of the rest, yet it is shown"
        )
        assert page.locator(".picture img").count() == 1
    finally:
        served.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[tuple[Served, Path]]:
    pool = write_pool(tmp_path_factory.mktemp("served") / "pool")
    served = Served(repository, pool)
    yield served, pool
    served.stop()


def test_forms_of_other_sites_are_refused(server: tuple[Served, Path]) -> None:
    served, pool = server
    for path in ("decide", "undo"):
        answer = httpx.post(served.url + path, data={"row": "0", "label": "clean", "token": "guessed"})
        assert answer.status_code == 403
        assert httpx.get(served.url + path).status_code == 405
    assert not (pool / "labels" / "review.parquet").exists()


def test_other_names_of_this_machine_are_refused(server: tuple[Served, Path]) -> None:
    assert httpx.get(server[0].url, headers={"Host": "rebound.example"}).status_code == 400


@pytest.mark.parametrize(
    ("row", "label", "status"),
    [("9", "clean", 404), ("9" * 5000, "clean", 404), ("x", "clean", 404), ("0", "x", 400)],
)
def test_wrong_forms_write_nothing(server: tuple[Served, Path], row: str, label: str, status: int) -> None:
    served, pool = server
    token = re.search(r'name="token" value="([^"]+)"', httpx.get(served.url).text)
    assert token
    form = {"row": row, "label": label, "token": token[1]}
    assert httpx.post(served.url + "decide", data=form).status_code == status
    assert not (pool / "labels" / "review.parquet").exists()


def test_nothing_is_fetched_or_kept_by_the_browser(server: tuple[Served, Path]) -> None:
    answer = httpx.get(server[0].url)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; img-src data:;")
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', answer.text)


def test_a_taken_port_is_a_mistake_of_the_user(
    server: tuple[Served, Path], pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = server[0].url.rstrip("/").rsplit(":", 1)[1]
    assert main([str(pool), "--port", port]) == 2
    assert "give another one, or 0 for a free one" in capsys.readouterr().err


def test_prompts_alone_need_no_data(repository: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", pictures=False)
    served = Served(repository, tmp_path / "gone", "--labels", str(pool / "labels"))
    try:
        page = httpx.get(served.url).text
    finally:
        served.stop()
    assert "There is no picture to show." in page and "Image score" not in page


def test_nothing_uncertain(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = pool / "labels" / "part-00000.parquet"
    pd.read_parquet(part).assign(label="clean").to_parquet(part)
    assert main([str(pool)]) == 2
    assert "give --all to look at the others" in capsys.readouterr().err


def test_other_data_than_was_labelled(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_pool(tmp_path / "other")
    (other / "metadata.jsonl").write_text(json.dumps({"file_name": "none.png", "text": "x"}) + "\n")
    assert main([str(other), "--labels", str(pool / "labels")]) == 2
    assert "give the data that was labelled" in capsys.readouterr().err


def test_data_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no finished labels" in capsys.readouterr().err
