"""The mixture finds two kinds where there are two, and one where there is one."""

import numpy as np
import pytest

from safetune.labeling.calibration import ONE_KIND, fit_mixture, label_of, threshold_for

REACH = 2.0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.35, 0.6])
def test_two_kinds(share: float, rng: np.random.Generator) -> None:
    truth = np.arange(1000) < 1000 * share
    values = rng.normal(np.where(truth, 4.0, 0.0), 0.7)
    mixture = fit_mixture(values, REACH)
    assert not mixture.one_kind
    assert ((mixture.log_odds(values) > 0) == truth).mean() > 0.99


def test_one_kind_is_not_split(rng: np.random.Generator) -> None:
    values = rng.normal(0.0, 1.0, 1000)
    mixture = fit_mixture(values, REACH)
    assert mixture.one_kind
    odds = mixture.log_odds(values)
    assert (odds <= -ONE_KIND).all()
    assert (np.argsort(odds) == np.argsort(values)).all()


def test_all_harmful_is_one_kind_and_harmful(rng: np.random.Generator) -> None:
    mixture = fit_mixture(np.concatenate([rng.normal(3.5, 0.3, 500), rng.normal(5.5, 0.3, 500)]), REACH)
    assert mixture.one_kind
    odds = mixture.log_odds(np.array([1.0, 3.0, 6.0]))
    assert (odds >= ONE_KIND).all() and (np.diff(odds) > 0).all()


def test_two_kinds_of_clean_scores_are_not_split(rng: np.random.Generator) -> None:
    mixture = fit_mixture(np.concatenate([rng.normal(-3.0, 0.3, 500), rng.normal(0.0, 0.3, 500)]), REACH)
    assert mixture.one_kind
    assert not mixture.harmful


def test_log_odds_rise_with_the_score_even_between_unequal_widths(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.normal(0, 2.0, 500), rng.normal(8, 0.3, 500)])
    odds = fit_mixture(values, REACH).log_odds(np.linspace(-20, 20, 400))
    assert (np.diff(odds) > 0).all()


def test_too_few_scores() -> None:
    with pytest.raises(ValueError, match="3 scores: calibration needs at least 10"):
        fit_mixture(np.zeros(3), REACH)


def test_labels_by_threshold() -> None:
    labels = label_of(np.array([0.1, 0.4, 0.5, 0.6, 0.9]), 0.4, 0.6)
    assert labels.tolist() == ["clean", "clean", "uncertain", "harmful", "harmful"]


def test_threshold_by_known_labels() -> None:
    harm = np.array([0.9, 0.8, 0.8, 0.6, 0.3])
    truth = np.array([True, True, False, True, False])
    assert threshold_for(harm, truth, 0.75) == 0.6
    assert threshold_for(harm, truth, 1.0) == 0.9
    with pytest.raises(ValueError, match=r"precision 1\.0: no threshold reaches it on the 2 known pairs"):
        threshold_for(np.array([0.5, 0.5]), np.array([True, False]), 1.0)


def test_a_handful_of_odd_values_is_no_kind_where_a_share_is_asked_for(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.normal(0.0, 0.5, 990), rng.normal(4.0, 0.2, 10)])
    assert not fit_mixture(values, REACH).one_kind
    assert fit_mixture(values, REACH, least_share=0.02).one_kind


def test_a_wide_kind_is_told_from_a_narrow_one(rng: np.random.Generator) -> None:
    truth = np.arange(1000) < 300
    values = rng.normal(np.where(truth, 5.5, 1.0), np.where(truth, 3.2, 0.6))
    mixture = fit_mixture(values, REACH)
    assert not mixture.one_kind
    assert ((mixture.log_odds(values) > 0) == truth).mean() > 0.9
