import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safetune.reporting import GridRow, PoolScores, write_report
from safetune.reporting.report import describe_outcome
from tests.reporting.fakes import fake_grid, fake_picture, fake_pool, fake_results

Tag = tuple[str, dict[str, str]]


class Tags(HTMLParser):
    """Every start tag with its attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Tag] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "run" / "report.html", fake_results(), fake_grid(), fake_pool(), "A <small> run")
    assert [path.name for path in (folder / "run").iterdir()] == ["report.html"]
    return (folder / "run" / "report.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_outside(page: str) -> None:
    assert not re.findall(r"https?:|//[a-z]", page.split("<script>")[0])
    loads = [
        value for _, attributes in Tags(page).tags for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    ]  # fmt: skip
    assert loads and all(value.startswith(("data:", "#")) for value in loads)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_prompts_and_title_are_escaped(page: str) -> None:
    tags = Tags(page)
    assert page.count("<script") == 1
    assert not [image for image in tags.named("img") if "onerror" in image or image["src"] == "x"]
    assert "&lt;script&gt;window.escaped = 1&lt;/script&gt; a &#34;fox&#34; &amp; a knife" in page
    assert "<title>A &lt;small&gt; run</title>" in page


def test_exactly_the_flagged_pictures_are_blurred_by_default(page: str) -> None:
    tags = Tags(page)
    expected = sum(sum(row.flagged.values()) for row in fake_grid())
    buttons = [button for button in tags.named("button") if "flagged" in button.get("class", "")]
    assert len(buttons) == expected == 5
    for button in buttons:
        assert button["class"].split() == ["picture", "flagged"]
        assert button["aria-pressed"] == "false" and button["type"] == "button"
        assert button["aria-label"].startswith("Show the flagged picture: ")
    assert "button.flagged img { filter: blur(" in page
    assert len([span for span in tags.named("span") if span.get("class") == "picture"]) == 8 * 3 - expected


def test_every_picture_has_an_alt_text_and_crisp_pixels(page: str) -> None:
    images = Tags(page).named("img")
    assert len(images) == 24 and all(image["alt"] for image in images)
    assert "image-rendering: pixelated" in page


def test_the_rows_stand_harmful_first(page: str) -> None:
    kinds = re.findall(r'class="kind (\w+)"', page)
    assert kinds == ["harmful"] * 4 + ["clean"] * 4


def test_every_number_is_there(page: str) -> None:
    text = Tags(page).text
    for number in ("0.871", "0.882", "0.963", "0.994", "0.957", "96.7%", "281", "288", "600"):
        assert number in text
    for name in ("94 s", "61 s", "3 min 23 s", "4.5 s", "5 min 01 s", "11 min 04 s", "0.0009766"):
        assert name in text
    for fact in (
        "tinysd-judge",
        "ab12" * 16,
        "cd34" * 16,
        "11, 12, 13",
        "DDIMScheduler",
        "2.13.0",
        "knife, gun",
    ):
        assert fact in text
    results = fake_results()
    for condition in ("base", "safecfg", "lora"):
        blocks = results[condition]
        assert isinstance(blocks, dict)
        for cell in (*blocks["harmful"].values(), blocks["clean"]):
            for rate in cell.values():
                assert f"{100 * rate['mean']:.1f} ± {100 * rate['stderr']:.1f}%" in text
    for size in ("64 prompts × 3 seeds", "72 prompts", "80 prompts", "96 prompts"):
        assert size in text


def test_the_headline_is_computed(page: str) -> None:
    sentence = describe_outcome(fake_results())
    assert sentence in page
    assert "in 95.8% of the base model’s pictures, in 3.8% with SafeCFG and in 1.8% after" in sentence
    assert sentence.endswith("changes by −1.5 points (subject −2.0, place −0.5, object −2.0).")


def test_the_page_is_accessible(page: str) -> None:
    tags = Tags(page)
    assert tags.named("html")[0]["lang"] == "en"
    assert [tag for tag, _ in tags.tags if re.fullmatch("h[1-6]", tag)] == ["h1"] + ["h2"] * 5
    assert len(tags.named("caption")) == len(tags.named("table")) == 6
    assert all(header.get("scope") for header in tags.named("th"))
    charts = [svg for svg in tags.named("svg") if svg["class"] == "plot"]
    assert len(charts) == 4 + 5 + 1 and all(svg["role"] == "img" and svg["aria-label"] for svg in charts)
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_limits_are_said(page: str) -> None:
    text = Tags(page).text
    assert "Ground truth colours this report only." in text and "The method never reads it" in text
    assert "no claim about a full-size model and real nudity or violence" in text


@pytest.mark.parametrize("missing", ["protocol", "base", "safecfg", "lora", "labels", "export", "seconds"])
def test_a_missing_block_reads_not_measured(missing: str, tmp_path: Path) -> None:
    results = {key: value for key, value in fake_results().items() if key != missing}
    write_report(tmp_path / "report.html", results, fake_grid(2), fake_pool(), "Partial")
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "not measured" in page.split("Every number")[0]


def test_nothing_at_all_still_makes_a_page(tmp_path: Path) -> None:
    nothing = np.zeros(0)
    pool = PoolScores({}, nothing, nothing.astype(str), nothing.astype(bool), (0.2, 0.8))
    write_report(tmp_path / "report.html", {}, [], pool, "Empty")
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert (
        "there is no headline" in page and "No picture was drawn" in page and "Scores: not measured." in page
    )


def test_keys_it_does_not_know_are_listed(tmp_path: Path) -> None:
    results = fake_results() | {"surprise": {"nested": [1, {"deep": "<b>"}]}}
    results["protocol"] = {"hosts": [{"name": "first"}, {"name": "second"}], "note": None}
    write_report(tmp_path / "report.html", results, [], fake_pool(), "Extra")
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "mixture components 2" in page and "surprise" in page and '"deep": "<b>"' in page
    assert "first" in page and "second" in page


def test_forty_rows_of_noise_stay_under_three_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]
    pictures = dict(zip(("base", "safecfg", "lora"), noise, strict=True))
    row = GridRow("noise, which no PNG compresses", True, pictures, dict.fromkeys(pictures, True))
    write_report(tmp_path / "report.html", fake_results(), [row] * 40, fake_pool(), "Large")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_report(tmp_path / name, fake_results(), fake_grid(2), fake_pool(), "Twice")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_missing_picture_leaves_its_place(tmp_path: Path) -> None:
    row = GridRow("a fox", False, {"base": fake_picture(0, False)}, {"base": False})
    write_report(tmp_path / "report.html", fake_results(), [row], fake_pool(), "Hole")
    assert Tags((tmp_path / "report.html").read_text(encoding="utf-8")).text.count("not drawn") == 2


def test_a_pool_of_uneven_arrays_is_an_error() -> None:
    pair, labels = np.zeros(2), np.array(["clean", "clean"])
    truth = np.zeros(2, dtype=bool)
    with pytest.raises(ValueError, match=r"image_score \(3,\)"):
        PoolScores({"image_score": np.zeros(3)}, pair, labels, truth, (0.2, 0.8))
    with pytest.raises(ValueError, match=r"unknown labels \['safe'\]"):
        PoolScores({}, pair, np.array(["clean", "safe"]), truth, (0.2, 0.8))
    with pytest.raises(ValueError, match="truth must be boolean"):
        PoolScores({}, pair, labels, pair, (0.2, 0.8))  # type: ignore[arg-type]


def test_the_whole_results_file_is_in_the_page(page: str) -> None:
    block = re.search(r"<pre[^>]*>(.*?)</pre>", page, flags=re.DOTALL)
    assert block is not None
    assert json.loads(html.unescape(block[1])) == fake_results()
