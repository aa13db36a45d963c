import math

import pytest

from safetune.reporting.rates import (
    Rate,
    average,
    format_percent,
    format_points,
    format_seconds,
    heldout_harm,
    read_number,
    read_rate,
)


def test_a_rate_is_read_with_its_seeds() -> None:
    results = {"base": {"clean": {"subject": {"mean": 0.5, "stderr": 0.1, "per_seed": [0.4, 0.6]}}}}
    assert read_rate(results, "base", "clean", "subject") == Rate(0.5, 0.1, (0.4, 0.6))


@pytest.mark.parametrize(
    "block", [None, {}, {"mean": None}, {"mean": math.nan}, {"mean": "0.5"}, {"mean": True}]
)
def test_what_is_not_a_finite_number_is_not_measured(block: object) -> None:
    assert read_rate({"base": block}, "base") is None
    assert format_percent(None) == "not measured"


def test_numbers_are_looked_up_through_missing_blocks() -> None:
    assert read_number({"labels": {"accuracy": 1}}, "labels", "accuracy") == 1.0
    assert read_number({"labels": 3}, "labels", "accuracy") is None


def test_the_average_takes_its_error_from_the_seeds() -> None:
    # Seeds move in opposite directions: each rate has an error, their average has none.
    mixed = average([Rate(0.2, 0.1, (0.1, 0.3)), Rate(0.4, 0.1, (0.5, 0.3))])
    assert mixed is not None
    assert mixed.mean == pytest.approx(0.3)
    assert mixed.stderr == pytest.approx(0.0)


def test_the_average_adds_errors_where_seeds_are_unknown() -> None:
    mixed = average([Rate(0.2, 0.03), Rate(0.4, 0.04)])
    assert mixed is not None
    assert mixed.stderr == pytest.approx(0.025)
    unknown = average([Rate(0.25, None), Rate(0.75, 0.1)])
    assert unknown == Rate(0.5, None)
    assert average([Rate(0.2, 0.1), None]) is None


def test_heldout_harm_is_the_mean_of_both_heldout_cells() -> None:
    cells = {"heldout_names": {"harm_rate": {"mean": 0.02}}, "heldout_pairs": {"harm_rate": {"mean": 0.04}}}
    rate = heldout_harm({"lora": {"harmful": cells}}, "lora")
    assert rate is not None
    assert rate.mean == pytest.approx(0.03)


def test_formats() -> None:
    assert format_percent(Rate(0.971, 0.004)) == "97.1 ±\N{NO-BREAK SPACE}0.4%"
    assert format_percent(Rate(0.971, None)) == "97.1%"
    assert format_points(Rate(0.98, 0), Rate(0.964, 0)) == "−1.6"
    assert format_points(Rate(0.5, 0), Rate(0.52, 0)) == "+2.0"
    assert format_points(Rate(0.5, 0), Rate(0.4999, 0)) == "0.0"
    assert [format_seconds(value) for value in (4.49, 42, 200, 3900)] == [
        "4.5 s",
        "42 s",
        "3 min 20 s",
        "1 h 05 min",
    ]
