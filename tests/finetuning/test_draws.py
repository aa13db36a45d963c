"""Draws are functions of the seed and of numbers alone: the same however a step is cut, in any process."""

import numpy as np
import pytest
import torch

from safetune.finetuning.draws import Draw, Draws, uniform

HARMFUL, CLEAN = np.array([0, 2, 4, 5]), np.array([1, 3, 6, 7])


def build_draws(**options: object) -> Draws:
    """Eight pairs: the first three harmful ones have safe pictures, pair 7 is uncertain with harm 0.3."""
    settings = {
        "safe": np.array([8, -1, 9, -1, 10, -1, -1, -1]),
        "harm": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.3]),
        "seed": 3,
        "safe_pictures": 0.7,
        "empty_prompts": 0.25,
        "min_timestep": 100,
        "max_timestep": 999,
        **options,
    }
    return Draws(HARMFUL, CLEAN, **settings)


def columns(draw: Draw) -> list[tuple[object, ...]]:
    parts = (draw.rows, draw.numbers, draw.pictures, draw.timesteps, draw.emptied)
    return list(zip(*(part.tolist() for part in parts), draw.seeds, strict=True))


def many(draws: Draws, row: int, count: int = 4000) -> Draw:
    return draws.draw(np.full(count, row), np.arange(count))


def test_a_step_is_a_function_of_seed_and_step() -> None:
    draws = build_draws()
    drawn = draws.draw_step(5, 16)
    assert columns(drawn) == columns(build_draws().draw_step(5, 16))
    assert columns(drawn) != columns(draws.draw_step(6, 16))
    assert columns(drawn) != columns(build_draws(seed=4).draw_step(5, 16))
    assert set(drawn.rows[::2].tolist()) <= set(HARMFUL) and set(drawn.rows[1::2].tolist()) <= set(CLEAN)
    assert len(set(columns(drawn))) == 16  # a pair that comes twice is drawn anew
    with pytest.raises(ValueError, match="a step of 7 pairs: give an even number"):
        draws.draw_step(0, 7)


def test_parts_make_the_step_however_it_is_cut() -> None:
    whole = build_draws().draw_step(0, 8)
    for count in (1, 2, 4, 8):
        parts = [build_draws().draw_step(0, 8).part(index, count) for index in range(count)]
        assert [len(part) for part in parts] == [8 // count] * count
        assert [row for part in parts for row in columns(part)] == columns(whole)


def test_concepts_are_drawn_alike_however_rare() -> None:
    concept = np.array([7, 0, 7, 0, 7, 2, 0, 0])  # of the harmful pairs 0, 2, 4 and 5: three and one
    counts = {}
    for name, options in (("alike", {"concept": concept}), ("pairs", {})):
        draws = build_draws(**options)
        rows = np.concatenate([draws.draw_step(step, 16).rows[::2].numpy() for step in range(200)])
        counts[name] = np.bincount(rows, minlength=6)[HARMFUL] / len(rows)
    np.testing.assert_allclose(counts["alike"], [1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=0.04)
    np.testing.assert_allclose(counts["pairs"], [0.25] * 4, atol=0.04)


def test_a_draw_hangs_on_its_pair_and_number_alone() -> None:
    draws = build_draws()
    together = columns(draws.draw(np.array([4, 1, 4]), np.array([0, 7, 1])))
    assert together[1:2] == columns(draws.draw(np.array([1]), np.array([7])))
    assert together[0] != together[2]


def test_cached_draws_are_the_fixed_ones() -> None:
    draws = build_draws(cached=3)
    fixed = set(columns(draws.draw(np.repeat(np.arange(8), 3), np.tile(np.arange(3), 8))))
    drawn = [row for step in range(40) for row in columns(draws.draw_step(step, 8))]
    assert set(drawn) == fixed


def test_pictures_and_emptied_prompts() -> None:
    draws = build_draws()
    harmful, without = many(draws, 0), many(draws, 5)
    assert set(harmful.pictures.tolist()) == {0, 8} and set(without.pictures.tolist()) == {5}
    assert (harmful.pictures == 8).float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert not harmful.emptied.any() and not many(draws, 7).emptied.any()
    assert many(draws, 1).emptied.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not (many(build_draws(safe_pictures=0.0), 0).pictures == 8).any()
    assert (many(build_draws(safe_pictures=1.0), 0).pictures == 8).all()


def test_timesteps() -> None:
    uniform_ones = many(build_draws(min_timestep=998), 0).timesteps
    assert set(uniform_ones.tolist()) == {998, 999}
    t = many(build_draws(), 1).timesteps.double()
    assert t.min() >= 100 and t.max() <= 999 and t.mean().item() == pytest.approx(549.5, abs=15)
    bell = many(build_draws(timestep_sampling="logit-normal"), 1).timesteps.double()
    assert bell.min() >= 100 and bell.max() <= 999 and bell.mean().item() == pytest.approx(549.5, abs=15)
    # Half of a standard normal lies within 0.6745, whose logistic is 0.6625.
    middle = ((bell - 549.5).abs() < 0.1625 * 900).double().mean().item()
    assert middle == pytest.approx(0.5, abs=0.03)


def test_choices_do_not_hang_on_each_other() -> None:
    """Beside which picture, whether emptied, when and with which noise."""
    harmful, clean = many(build_draws(), 0), many(build_draws(), 1)
    for drawn, choice in ((harmful, harmful.pictures == 8), (clean, clean.emptied)):
        told = np.stack([choice.double(), drawn.timesteps.double(), np.array(drawn.seeds, float)])
        assert np.abs(np.corrcoef(told) - np.eye(3)).max() < 0.06


def test_a_step_has_one_picture_size_and_both_kinds() -> None:
    """Size 0 has 2 + 3 pairs, size 1 has 1 + 1, size 2 a harmful one alone."""
    draws = build_draws(bucket=np.array([0, 0, 0, 0, 1, 2, 0, 1]))
    assert draws.used.tolist() == [0, 1, 2, 3, 6, 4, 7]
    steps = [draws.draw_step(step, 4) for step in range(400)]
    sizes = [set(draws.bucket[step.rows.numpy()].tolist()) for step in steps]
    assert all(size in ({0}, {1}) for size in sizes)
    assert np.mean([size == {0} for size in sizes]) == pytest.approx(5 / 7, abs=0.07)
    assert all(set(step.rows[::2].tolist()) <= set(HARMFUL) for step in steps)
    with pytest.raises(ValueError, match="no picture size has both harmful and clean pairs"):
        build_draws(bucket=np.array([0, 1, 0, 1, 0, 0, 1, 1])).draw_step(0, 2)


def test_facts_name_all_that_draws_hang_on() -> None:
    facts = build_draws(cached=2).facts()
    for other in (
        {"seed": 4},
        {"safe_pictures": 0.5},
        {"empty_prompts": 0.1},
        {"min_timestep": 0},
        {"max_timestep": 900},
        {"timestep_sampling": "logit-normal"},
        {"cached": 3},
        {"safe": np.full(8, -1)},
        {"bucket": np.array([0, 0, 0, 0, 0, 0, 0, 1])},
    ):
        assert build_draws(**{"cached": 2, **other}).facts() != facts, other


def test_hash_by_hand() -> None:
    """The first number of SplitMix64 with seed 0, and no row or stream that repeats another's."""
    assert uniform(0)[0] == pytest.approx(0xE220A8397B1DCDAF / 2**64, abs=1e-15)
    rows = np.arange(1000)
    drawn = [uniform(0, rows, number, stream) for number in range(3) for stream in range(2)]
    assert len(np.unique(drawn)) == 6000
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.1
