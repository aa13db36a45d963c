import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy.special import expit

from safetune.labeling.calibration import Mixture
from safetune.reporting.label_plots import band_edges, expected_pairs, label_histogram, mixture_histogram

TWO = Mixture((-1.0, 2.0), (0.5, 0.7), (0.75, 0.25))


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    return ["".join(element.itertext()).strip() for element in root.iter("text")]


def test_a_components_bins_add_up_to_its_share_of_the_pairs() -> None:
    places = np.linspace(-6, 8, 141)
    expected = expected_pairs(TWO, 200, places, 0.1)
    assert expected.sum(axis=1) == pytest.approx([150, 50], rel=1e-6)
    assert places[expected.argmax(axis=1)] == pytest.approx([-1.0, 2.0])


def test_the_band_lies_where_harm_reaches_the_thresholds() -> None:
    edges = band_edges(TWO, (0.4, 0.6), -3.0, 4.0)
    assert expit(TWO.log_odds(edges)) == pytest.approx([0.4, 0.6], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "scores", "wanted", "title"),
    [
        ("prompt", np.geomspace(0.01, 100, 50), "0.01 0.05 0.2 1 5 20 100", "score, logarithmic"),
        ("image", np.linspace(-3, 20, 50), "0 5 10 15 20", "score, in spreads of clean pictures"),
    ],
)
def test_the_axis_has_a_few_round_scores(name: str, scores: np.ndarray, wanted: str, title: str) -> None:
    found = texts(mixture_histogram(name, scores, np.full(50, True), TWO, (0.4, 0.6)))
    assert found[: found.index(title)] == wanted.split()


def test_scores_that_are_not_there_are_left_out() -> None:
    scores = np.array([0.5, np.nan, 1.0, 2.0])
    svg = mixture_histogram("prompt", scores, np.full(4, True), Mixture((0.0,), (1.0,), (1.0,)), (0.4, 0.6))
    assert 'aria-label="Histogram of prompt score, 3 pairs; one component: 100% around 1."' in svg
    empty = mixture_histogram("image", np.full(2, np.nan), np.full(2, True), TWO, (0.4, 0.6))
    assert "0 pairs" in empty


def test_harm_in_the_colours_of_its_labels() -> None:
    labels = np.array(["clean", "clean", "uncertain", "harmful"], dtype=object)
    svg = label_histogram(np.array([0.0, 0.1, 0.5, 0.9]), labels, (0.4, 0.6))
    assert "thresholds 0.4 and 0.6: 2 clean, 1 uncertain, 1 harmful." in svg
    assert {"← clean ≤ 0.4", "harmful ≥ 0.6 →"} <= set(texts(svg))
    assert all(f"var(--{name})" in svg for name in ("clean", "base", "harmful"))
