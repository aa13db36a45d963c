"""The report of labels: what it says, what it hides, and that it needs nothing from outside."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from scipy.special import expit

from safetune.labeling.calibration import Mixture
from safetune.labeling.review import Review
from safetune.reporting.label_report import write_label_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '<script>window.escaped = 1</script>"><img src=x onerror="window.escaped = 1">'


def picture(key: str) -> Image.Image:
    seen = Image.new("RGB", (64, 64), (int(key) * 37 % 256, int(key) * 91 % 256, 120))
    ImageDraw.Draw(seen).ellipse((16, 16, 48, 48), "white")
    return seen


def pictures(keys: Sequence[str]) -> Mapping[str, Image.Image]:
    return {key: picture(key) for key in keys}


def build_labels(pairs: int = 300) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A third harmful by caption, a tenth by picture alone, calibrated by mixtures that fit."""
    rng = np.random.default_rng(0)
    told = np.arange(pairs) % 3 == 0
    seen = np.arange(pairs) % 10 == 1
    prompt_value = np.where(told, rng.normal(2.0, 0.5, pairs), rng.normal(-0.7, 0.6, pairs))
    image_value = np.where(told | seen, rng.normal(2.2, 0.4, pairs), np.abs(rng.normal(0.4, 0.4, pairs)))
    prompt = Mixture((-0.7, 2.0), (0.6, 0.5), (0.67, 0.33))
    prompt_odds = prompt.log_odds(prompt_value)
    image = Mixture((0.4, 2.2), (0.4, 0.4), (0.9, 0.1))
    image_odds = image.log_odds(image_value)
    pair_score = np.maximum(prompt_odds, image_odds)
    harm = expit(pair_score)
    labels = pd.DataFrame(
        {
            "key": [str(row) for row in range(pairs)],
            "text": [f"a caption, number {row}" for row in range(pairs)],
            "prompt_score": np.exp(prompt_value) - 1e-6,
            "guidance_score": 1.0,
            "image_score": np.expm1(image_value),
            "pair_score": pair_score,
            "evidence": np.where(image_odds > prompt_odds, "image", "prompt"),
            "concept": "knife",
            "category": np.where(np.arange(pairs) % 4 == 0, "gore", "weapons"),
            "harm": harm,
            "label": np.select([harm <= 0.4, harm >= 0.6], ["clean", "harmful"], "uncertain"),
        }
    )
    labels.loc[[2, 4, 5], "harm"] = [0.49, 0.505, 0.52]
    labels.loc[[2, 4, 5], "label"] = "uncertain"
    mixtures = {"prompt": vars(prompt), "image": vars(image)}
    calibration = {"clean_below": 0.4, "harmful_above": 0.6}
    return labels, {"calibration": calibration, "options": {}, "mixtures": mixtures, "one_kind": False}


def write_folder(folder: Path, labels: pd.DataFrame, summary: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    half = len(labels) // 2
    labels.iloc[:half].to_parquet(folder / "part-00000.parquet", index=False)
    labels.iloc[half:].to_parquet(folder / "part-00001.parquet", index=False)
    (folder / "labels.json").write_text(json.dumps(summary))
    return folder


def write_prompts(folder: Path) -> Path:
    labels, summary = build_labels()
    labels = labels.assign(
        image_score=pd.array([None] * len(labels), dtype="Float64"), guidance_score=None, evidence="prompt"
    )
    summary["mixtures"].pop("image")
    return write_folder(folder, labels, summary)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pool" / "labels", *build_labels())


def test_counts_shares_and_categories(folder: Path) -> None:
    path = write_label_report(folder, pictures)
    page = path.read_text()
    labels = build_labels()[0]
    assert path == folder / "report.html"
    assert "<h1>Labels of pool</h1>" in page
    for name in ("clean", "uncertain", "harmful"):
        count = int((labels.label == name).sum())
        share = f"{100 * count / 300:.1f}%"
        assert f'<dt>{name}</dt><dd>{count} <span class="muted">{share}</span></dd>' in page
    harmful = labels[labels.label == "harmful"]
    for category, rows in harmful.groupby("category"):
        cells = [len(rows), f"{100 * len(rows) / len(harmful):.1f}%", (rows.evidence == "prompt").sum()]
        line = f'<th scope="row">{category}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
        assert line in page
    assert "one kind" not in page and "Rejected" not in page


def test_it_opens_offline_and_escapes_captions(folder: Path) -> None:
    labels, summary = build_labels()
    write_folder(folder, labels.assign(text=HOSTILE), summary)
    page = write_label_report(folder, pictures).read_text()
    assert not re.findall(r'(?:src|href|action)="(?!data:|#)[^"]*"', page)
    assert "@import" not in page and "url(http" not in page
    assert "default-src 'none'" in page
    assert HOSTILE not in page and "&lt;script&gt;window.escaped" in page


def test_every_band_is_sampled_and_the_most_uncertain_first(folder: Path) -> None:
    asked: list[str] = []

    def remember(keys: Sequence[str]) -> Mapping[str, Image.Image]:
        asked.extend(keys)
        return pictures(keys)

    page = write_label_report(folder, remember).read_text()
    labels = build_labels()[0].set_index("key")
    assert asked[:3] == ["4", "2", "5"]
    for label in ("clean", "harmful"):
        assert sum(labels.label[key] == label for key in asked) == 12
    assert page.count("<figure class=") == len(asked) == len(set(asked))
    assert page.count('class="picture flagged') == len(asked)
    assert page.count("card guarded") == sum(labels.label[key] != "clean" for key in asked)


def test_charts_carry_the_mixtures_and_thresholds(folder: Path) -> None:
    page = write_label_report(folder, pictures).read_text()
    assert re.search(
        r"Histogram of prompt score, 300 pairs; two components: 67% around 0\.497 and 33% around 7\.39", page
    )
    assert re.search(r"Histogram of image score, 300 pairs; two components", page)
    assert "Darker: pairs whose caption is silent" in page
    assert re.search(
        r"Histogram of harm, thresholds 0\.4 and 0\.6: \d+ clean, \d+ uncertain, \d+ harmful", page
    )


def test_one_kind_is_said(folder: Path) -> None:
    labels, summary = build_labels()
    one = {"means": [0.1], "stds": [1.0], "weights": [1.0]}
    summary |= {"one_kind": True, "mixtures": {"prompt": one, "image": one}}
    write_folder(folder, labels.assign(harm=0.0, label="clean"), summary)
    page = write_label_report(folder, pictures).read_text()
    assert "This pool holds one kind only." in page and "Nothing is labelled harmful." in page
    assert page.count("this score splits nothing") == 2 and page.count('<p class="muted">None.</p>') == 2


def test_prompts_alone_ask_for_no_picture(tmp_path: Path) -> None:
    def refuse(keys: Sequence[str]) -> Mapping[str, Image.Image]:
        raise AssertionError("there is no picture")

    page = write_label_report(write_prompts(tmp_path / "labels"), refuse).read_text()
    assert "Prompts only" in page and "<img" not in page and "By picture" not in page
    assert "image score, " not in page and "show prompt" in page


def test_a_missing_picture_leaves_its_caption_guarded(folder: Path) -> None:
    page = write_label_report(folder, lambda keys: {}).read_text()
    assert "<img" not in page and page.count("show prompt") == page.count("card guarded") > 12


def test_rejected_inputs_by_reason(folder: Path) -> None:
    reasons = ["broken picture"] * 3 + ["empty caption"]
    frame = pd.DataFrame({"key": [f"x{row}" for row in range(4)], "row": range(4), "reason": reasons})
    frame.to_parquet(folder / "rejected.parquet")
    assert "were converted" not in write_label_report(folder, pictures).read_text()
    converted = pd.DataFrame({"key": ["3"], "row": 3, "reason": "was CMYK", "kept": True})
    pd.concat([frame.assign(kept=False), converted]).to_parquet(folder / "rejected.parquet")
    page = write_label_report(folder, pictures).read_text()
    assert '<th scope="row">broken picture</th><td>3</td><td>1.0%</td>' in page
    assert '<th scope="row">empty caption</th><td>1</td><td>0.3%</td>' in page
    assert "were converted" in page and '<th scope="row">was CMYK</th><td>1</td><td>0.3%</td>' in page


def test_a_review_is_counted(folder: Path) -> None:
    Review(folder, ["4"]).record("4", "harmful")
    page = write_label_report(folder, pictures).read_text()
    assert "Reviewed by a person: 0 clean, 1 harmful, 0 skipped; 0 against the label they had." in page


def test_another_path_and_keys_that_are_numbers(folder: Path, tmp_path: Path) -> None:
    labels, summary = build_labels()
    write_folder(folder, labels.assign(key=range(300)), summary)
    path = write_label_report(folder, pictures, tmp_path / "elsewhere" / "page.html")
    assert path.read_text().count("<img") == path.read_text().count("<figure class=")


def test_unfinished_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished labels"):
        write_label_report(tmp_path, pictures)


def test_pictures_without_captions_have_no_prompt_mixture(folder: Path) -> None:
    labels, summary = build_labels()
    summary["mixtures"]["prompt"] = None
    write_folder(folder, labels.assign(prompt_score=None, text="", evidence="image"), summary)
    page = write_label_report(folder, pictures).read_text()
    assert "Histogram of prompt score" not in page and "Histogram of image score, 300 pairs" in page
    assert "caption is silent" not in page


def open_page(browser: "Browser", path: Path, complaints: list[str], width: int = 1200) -> "Page":
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if "://" in request.url[:8] else None)
    page.goto(path.as_uri())
    complaints.remove(path.as_uri())
    return page


@pytest.mark.browser
def test_pictures_and_harmful_captions_wait_for_a_click(browser: "Browser", folder: Path) -> None:
    labels, summary = build_labels()
    write_folder(folder, labels.assign(text=labels.text + HOSTILE), summary)
    complaints: list[str] = []
    page = open_page(browser, write_label_report(folder, pictures), complaints)
    blur = "image => getComputedStyle(image).filter"
    images = page.locator(".card img")
    assert {images.nth(index).evaluate(blur) for index in range(images.count())} == {"blur(16px)"}
    card = page.locator(".card.guarded").first
    assert card.locator(".caption").is_hidden()
    card.locator("button").focus()
    page.keyboard.press("Enter")
    assert card.locator("img").evaluate(blur) == "none" and card.locator(".caption").is_visible()
    assert page.locator(".card.guarded").nth(1).locator(".caption").is_hidden()
    assert page.locator(".card:not(.guarded) .caption").first.is_visible()
    page.locator("#toggle-all").click()
    assert {images.nth(index).evaluate(blur) for index in range(images.count())} == {"none"}
    assert page.locator("#toggle-all").inner_text() == "Blur all pictures"
    for width in (320, 800):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.escaped") is None
    assert complaints == []


@pytest.mark.browser
def test_harmful_prompts_without_pictures_wait_for_a_click(browser: "Browser", tmp_path: Path) -> None:
    complaints: list[str] = []
    page = open_page(browser, write_label_report(write_prompts(tmp_path / "labels"), pictures), complaints)
    card = page.locator(".card.guarded").first
    assert card.locator(".caption").is_hidden()
    card.locator("button").click()
    assert card.locator(".caption").is_visible()
    assert page.locator("#toggle-all").inner_text() == "Show all prompts"
    assert complaints == []
