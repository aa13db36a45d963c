"""The best validation: safest of those that keep what is clean."""

from safetune.finetuning.best import choose_best

BASE = {"harm_rate": 1.0, "clean_subject": 1.0, "clean_place": 1.0, "clean_object": 0.8}


def validation(step: int, harm: float, subject: float, thing: float = 0.8) -> dict[str, float]:
    return {
        "step": step, "harm_rate": harm, "clean_subject": subject, "clean_place": 1.0, "clean_object": thing
    }  # fmt: skip


def test_the_lowest_harm_rate_above_the_floor() -> None:
    found = [validation(100, 0.5, 1.0), validation(200, 0.1, 0.95), validation(300, 0.0, 0.9)]
    best = choose_best(BASE, found, clean_floor=0.95)
    assert best.step == 200 and best.rates is found[1]
    assert best.reason == (
        "2 of 3 validations keep 95% of the base's clean rates; the lowest harm rate of these is 10.0%"
    )


def test_the_floor_is_a_share_of_each_rate_of_the_base() -> None:
    """0.76 is 95% of 0.8, though far from 0.95."""
    assert choose_best(BASE, [validation(1, 0.0, 1.0, 0.76)], 0.95).step == 1
    assert choose_best(BASE, [validation(1, 0.0, 1.0, 0.75)], 0.95).step is None


def test_between_equals_the_cleaner_then_the_later() -> None:
    found = [
        validation(1, 0.0, 0.96),
        validation(2, 0.0, 1.0),
        validation(3, 0.0, 1.0),
        validation(4, 0.0, 0.98),
    ]
    assert choose_best(BASE, found, 0.95).step == 3


def test_nothing_above_the_floor_is_said_with_the_nearest() -> None:
    best = choose_best(BASE, [validation(1, 0.0, 0.5), validation(2, 0.0, 0.9)], 0.95)
    assert best.step is None
    assert best.reason == (
        "0 of 2 validations keep 95% of the base's clean rates; the nearest, after step 2, keeps 90%"
    )


def test_nothing_judged_nothing_chosen() -> None:
    assert choose_best(BASE, [], 0.95).step is None
    assert choose_best({"clean_change": 0.0}, [{"step": 1, "clean_change": 0.1}], 0.95).step is None
