"""The report in a real browser, opened from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from safetune.reporting import write_report
from tests.reporting.fakes import fake_grid, fake_pool, fake_results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(path, fake_results(), fake_grid(), fake_pool(), "Browser")
    return path


@pytest.fixture
def page(browser: "Browser", report: Path) -> "Iterator[Page]":
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith(("data:", "file:")) else complaints.append(request.url)
        ),
    )
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert complaints == []


def blur(page: "Page", index: int = 0) -> str:
    image = page.locator("button.flagged img").nth(index)
    return str(image.evaluate("element => getComputedStyle(element).filter"))


def test_flagged_pictures_are_blurred_until_clicked(page: "Page") -> None:
    assert all(blur(page, index) == "blur(16px)" for index in range(5))
    crisp = page.locator("span.picture img").first
    assert crisp.evaluate("element => getComputedStyle(element).filter") == "none"
    button = page.locator("button.flagged").first
    button.click()
    assert blur(page) == "none" and button.get_attribute("aria-pressed") == "true"
    assert blur(page, 1) == "blur(16px)"
    button.click()
    assert blur(page) == "blur(16px)" and button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_keyboard_does_the_same(page: "Page", key: str) -> None:
    page.locator("#toggle-all").focus()
    page.keyboard.press("Tab")
    page.keyboard.press(key)
    assert blur(page) == "none"
    page.keyboard.press(key)
    assert blur(page) == "blur(16px)"


def test_one_button_shows_and_blurs_all(page: "Page") -> None:
    button = page.locator("#toggle-all")
    assert button.inner_text() == "Show all flagged pictures"
    page.locator("button.flagged").first.click()
    button.click()
    assert [blur(page, index) for index in range(5)] == ["none"] * 5
    assert button.inner_text() == "Blur all flagged pictures"
    button.click()
    assert [blur(page, index) for index in range(5)] == ["blur(16px)"] * 5


def test_the_hostile_prompt_does_nothing(page: "Page") -> None:
    assert page.evaluate("window.escaped") is None


@pytest.mark.parametrize("width", [320, 400, 800, 1200])
def test_the_page_never_scrolls_sideways(page: "Page", width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_blurred_without_javascript(browser: "Browser", report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#toggle-all").is_hidden()
    assert all(blur(page, index) == "blur(16px)" for index in range(5))
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: "Page", scheme: str) -> None:
    """WCAG AA: text 4.5 to 1 against the paper, chart colours 3 to 1."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    script = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
    paper = luminance(page.evaluate(script, "paper"))
    for least, names in ((4.5, "ink muted link harmful clean"), (3.0, "base safecfg lora")):
        for name in names.split():
            light = luminance(page.evaluate(script, name))
            ratio = (max(light, paper) + 0.05) / (min(light, paper) + 0.05)
            assert ratio >= least, f"{name} in {scheme}: {ratio:.2f}"


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
