import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from safetune.reporting.plots import harm_histogram, rate_chart, score_histogram, time_chart
from safetune.reporting.rates import Rate


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in parse(svg).iter("text")]


def test_bars_show_every_rate_and_what_is_not_measured() -> None:
    rates: dict[str, list[Rate | None]] = {
        "base": [Rate(0.97, 0.01), Rate(1.0, None)],
        "lora": [Rate(0.0, 0.0), None],
    }
    svg = rate_chart("harm", ["seen", "pairs"], rates, "Harm & rate")
    assert {"97.0", "100", "0", "not measured", "seen", "pairs"} <= set(texts(svg))
    label = parse(svg).get("aria-label") or ""
    assert label.startswith("Harm & rate. seen: Base, CFG 97.0 ±\N{NO-BREAK SPACE}1.0%, LoRA, plain CFG 0.0")
    assert "pairs: Base, CFG 100.0%, LoRA, plain CFG not measured." in label


def test_colours_are_variables_of_the_page_and_nothing_points_outside() -> None:
    svg = rate_chart("harm", ["seen"], {"base": [Rate(0.5, 0.1)]}, "Harm")
    assert "var(--base)" in svg and "var(--ink)" in svg
    assert "http" not in svg and "<style" not in svg
    assert not re.findall(r"#0000[0-9a-f]{2}\b(?<!#000000)", svg)


def test_two_charts_share_no_id() -> None:
    scores, truth = np.geomspace(0.1, 10, 40), np.arange(40) > 19
    charts = [score_histogram(name, scores, truth) for name in ("prompt_score", "pair_score")]
    found = [set(re.findall(r' id="([^"]+)"', chart)) for chart in charts]
    assert found[0] and not found[0] & found[1]


def test_scores_without_logarithm_are_counted_and_said() -> None:
    scores = np.array([-1.0, 0.0, 0.1, 1.0, 10.0, np.nan])
    svg = score_histogram("image_score", scores, np.array([False, False, False, True, True, True]))
    assert "score, logarithmic; 2 at or below zero, in the first bin; 1 not finite, left out" in texts(svg)
    assert "3 clean pairs, median 0; 2 harmful pairs, median 5.5." in (parse(svg).get("aria-label") or "")


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.0, -2.0], [np.nan, np.inf]])
def test_degenerate_scores_still_draw(scores: list[float]) -> None:
    assert parse(score_histogram("image_score", np.array(scores), np.array([True, False]))).tag == "svg"


def test_both_thresholds_are_drawn_and_named() -> None:
    harm, truth = np.array([0.01, 0.02, 0.5, 0.99]), np.array([False, False, True, True])
    svg = harm_histogram(harm, truth, (0.2, 0.85))
    assert {"← clean ≤ 0.2", "harmful ≥ 0.85 →"} <= set(texts(svg))


def test_a_pool_of_one_kind_still_draws() -> None:
    svg = harm_histogram(np.array([0.01, 0.02]), np.array([False, False]), (0.2, 0.8))
    assert "0 harmful pairs." in (parse(svg).get("aria-label") or "")


def test_time_bars_name_stage_and_duration() -> None:
    assert {"train hgr", "94 s", "export", "0.0 s"} <= set(
        texts(time_chart({"train_hgr": 94.2, "export": 0.0}))
    )
