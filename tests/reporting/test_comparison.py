"""The page of several evaluations: what it says, what it hides, and that it needs nothing from outside."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from safetune.evaluation.compare import compare
from tests.evaluation.compared import (
    add_grids,
    build_method,
    build_results,
    first_results,
    rate,
    second_results,
    write_results,
)
from tests.reporting.test_report import Tags

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<script>window.escaped = 1</script><img src=x onerror='window.escaped = 1'>"


def write_page(folder: Path) -> Path:
    """Two evaluations with pictures; the base drew clean prompts without harm, and one method is hostile."""
    first, second = first_results(), second_results()
    first["methods"]["base"]["cells"]["clean"]["harm_rate"] = rate(0.0, 0.0)
    add_grids(folder / "one", first)
    add_grids(folder / "two", second)
    second["methods"][HOSTILE] = build_method(0.5)
    write_results(folder / "one", first)
    write_results(folder / "two", second)
    compare([folder / "one", folder / "two"], folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == ["compare.html"]
    return folder / "out" / "compare.html"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def tags(path: Path) -> Tags:
    return Tags(path.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_outside(path: Path, tags: Tags) -> None:
    page = path.read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//[a-z]", re.sub(r"data:[^\"]*", "", page).split("<script>")[0])
    loads = [
        value for _, attributes in tags.tags for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    ]  # fmt: skip
    assert loads and all(value.startswith(("data:", "#")) for value in loads)
    assert "default-src 'none'" in page and page.count("<script") == 1 and HOSTILE not in page


def test_tables_have_captions_and_charts_are_read_aloud(tags: Tags) -> None:
    assert len(tags.named("caption")) == len(tags.named("table")) == 3
    assert all(header.get("scope") for header in tags.named("th"))
    charts = [svg for svg in tags.named("svg") if svg["class"] == "plot"]
    assert len(charts) == 1 + 2
    assert all(svg["role"] == "img" for svg in charts)
    assert "esd: harm 2.5 ± 1.4%, 93.5 ± 2.0%" in charts[0]["aria-label"]
    assert charts[1]["aria-label"].startswith("Harm rate, gore. base (one) 47.5 ± 0.5%; safecfg 3.0 ± 0.5%;")
    assert all(image["alt"] for image in tags.named("img"))
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_numbers_marks_and_protocol_are_there(path: Path, tags: Tags) -> None:
    page = path.read_text(encoding="utf-8")
    marked = re.findall(r'<td class="marked">([^<]*)', page)
    assert marked.count("2.1 ± 2.0") == 1 and "5.1 ± 2.0" not in marked
    assert "62.5 (45.3 to 77.1)" in marked and "50.0 (33.6 to 66.4)" in marked
    for text in (
        "half the width of the 95% interval",
        "7788" * 16,
        "DDIMScheduler",
        "search_steps",
        "2.13.0",
    ):
        assert text in tags.text
    assert "No method beats esd on both axes." in tags.text
    assert re.search(r"lora\s+by esd", tags.text) and "1 min" not in tags.text and "61 s" in tags.text


def test_pictures_are_hidden_unless_clean_and_without_harm(tags: Tags) -> None:
    buttons = [one for one in tags.named("button") if "flagged" in one.get("class", "")]
    shown = [one for one in tags.named("span") if one.get("class", "").startswith("picture")]
    assert len(buttons) == 5 + 4 and len(shown) == 1  # the base without harm; all others may show some
    assert all(one["aria-label"].endswith("which may show harm") for one in buttons)
    assert [image["alt"] for image in tags.named("img")].count("Pictures of base (one): clean") == 1
    assert tags.text.count("not drawn") == 2


def test_a_grid_that_names_no_cell_is_hidden(tmp_path: Path) -> None:
    results = build_results({"base": build_method(0.5)})
    results["methods"]["base"]["grid"] = ["base/grid.png", "base/gone.png"]
    (tmp_path / "base").mkdir()
    Image.effect_noise((1400, 700), 90).save(tmp_path / "base" / "grid.png")
    compare([write_results(tmp_path, results)], tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert 'class="picture flagged photo"' in page and "data:image/jpeg" in page and "gone" not in page
    assert len(page) < 1_000_000


def test_a_bad_grid_is_an_error(tmp_path: Path) -> None:
    results = build_results({"base": build_method(0.5)})
    results["methods"]["base"]["grid"] = ["../outside.png"]
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    folder = write_results(tmp_path / "run", results)
    with pytest.raises(ValueError, match="lies outside of"):
        compare([folder], tmp_path / "out")
    results["methods"]["base"]["grid"] = ["broken.png"]
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken.png is no readable picture"):
        compare([write_results(folder, results)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_separate_protocols_have_tables_of_their_own(tmp_path: Path) -> None:
    one = write_results(tmp_path / "one", first_results())
    two = write_results(tmp_path / "two", second_results(steps=20))
    compare([one, two], tmp_path / "out", separate=True)
    tags = Tags((tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    assert "Table 1" in tags.text and "Table 2" in tags.text
    assert "Protocol other than that of table 1: steps : 20 here, 10 in table 1" in tags.text
    assert len([svg for svg in tags.named("svg") if svg["class"] == "plot"]) == 2 * 3


def test_little_is_enough(tmp_path: Path) -> None:
    results = {
        "methods": {"base": {"cells": {"i2p": {"harm_rate": {"mean": 0.25}}}}},
        "cell_kinds": {"i2p": "harmful"},
        "protocol": {"model": "sd14"},
    }
    compare([write_results(tmp_path, results)], tmp_path / "out")
    tags = Tags((tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    assert "25.0" in tags.text and "No method has both" in tags.text and "Under attack" not in tags.text


@pytest.fixture
def page(browser: "Browser", path: Path) -> "Iterator[Page]":
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(path.as_uri())
    yield opened
    opened.close()
    assert complaints == []


@pytest.mark.browser
def test_a_click_shows_and_hides(page: "Page") -> None:
    image = page.locator("button.flagged img").first
    assert image.evaluate("one => getComputedStyle(one).filter") == "blur(22px)"
    page.locator("button.flagged").first.click()
    assert image.evaluate("one => getComputedStyle(one).filter") == "none"
    toggle = page.locator("#toggle-all")
    toggle.click()
    assert toggle.inner_text() == "Blur all pictures that may show harm"
    assert page.evaluate("window.escaped") is None


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 400, 800, 1280])
def test_the_page_never_scrolls_sideways(page: "Page", width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_names_in_the_plane_do_not_cover_each_other(page: "Page") -> None:
    boxes = page.evaluate(
        """names => [...document.querySelectorAll('.plane svg text')]
           .filter(one => names.includes(one.textContent.trim()))
           .map(one => one.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])""",
        ["base (one)", "base (two)", "safecfg", "lora", "esd"],
    )
    assert len(boxes) == 5
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            covered = min(right, other[2]) - max(left, other[0]), min(bottom, other[3]) - max(top, other[1])
            assert min(covered) < 2
