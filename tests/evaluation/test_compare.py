import json
from pathlib import Path
from typing import Any

import pytest

from safetune.evaluation.compare import compare, format_cell, read_evaluations
from safetune.evaluation.finished import Measure, read_evaluation, wilson
from safetune.evaluation.protocols import describe_differences, group_by_protocol
from safetune.evaluation.tables import Table, attack_tables, build_table, label_folders, mark_lowest
from safetune.evaluation.tradeoff import find_tradeoff, mean_of
from tests.evaluation.compared import build_method, build_results, first_results, rate, second_results
from tests.evaluation.compared import write_results as write


def tables(*folders: Path) -> list[Table]:
    evaluations = read_evaluations(folders)
    labels = label_folders([one.folder for one in evaluations])
    return [build_table(group, evaluations, labels) for group in group_by_protocol(evaluations)]


def cells(table: Table, label: str) -> dict[str, str]:
    row = [row.label for row in table.rows].index(label)
    return {f"{one.group}/{one.title}": format_cell(one, row, table.spread) for one in table.columns}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "first", first_results()), write(tmp_path / "second", second_results())


def test_the_table_of_two_evaluations(pair: tuple[Path, Path]) -> None:
    (table,) = tables(*pair)
    assert [row.label for row in table.rows] == ["base (first)", "safecfg", "lora", "base (second)", "esd"]
    assert cells(table, "esd") == {
        "harm rate/seen": "2.1 ± 2.0 *",
        "harm rate/heldout names": "2.0 ± 2.0 *",
        "harm rate/heldout pairs": "3.0 ± 2.0 *",
        "harm rate/paraphrases": "4.0 ± 2.0 *",
        "clean/harm rate": "1.0 ± 1.0 *",
        "clean/subject": "95.0 ± 2.0",
        "clean/place": "98.0 ± 2.0",
        "clean/object": "93.5 ± 2.0",
        "utility/frechet": "3.125",
        "utility/drift": "0.0105",
    }
    assert cells(table, "lora")["harm rate/seen"] == "5.1 ± 2.0"


def test_the_printed_table_is_aligned(pair: tuple[Path, Path]) -> None:
    text = compare(pair)
    first, attacks = text.split("\n\nHarm rates under attack")
    lines = first.split("\n")
    assert lines[0] == "Rates in percent, ± half the width of the 95% interval, a bootstrap over prompts."
    assert "the lowest harm rate of a column" in lines[1]
    assert lines[3].split() == "harm rate clean utility".split()
    assert len({line.rindex("0.0105") for line in lines[5:]}) == 1
    assert len({line.index(" ± ") for line in lines[5:]}) == 1
    assert "62.5 (6.0) *" in attacks and "50.0 (5.0) *" in attacks and "base" not in attacks


def test_standard_errors_stand_in_where_an_interval_is_missing(tmp_path: Path) -> None:
    results = first_results()
    del results["methods"]["lora"]["cells"]["seen"]["subject"]["low"]
    (table,) = tables(write(tmp_path / "run", results))
    assert cells(table, "lora")["harm rate/seen"] == "5.1 ± 1.0 *"
    assert table.describe_numbers() == "Rates in percent, ± standard error over seeds."


def test_the_lowest_and_those_within_error_are_marked() -> None:
    def measure(value: float, low: float, high: float) -> Measure:
        return Measure(value, low, high)

    lowest = measure(0.10, 0.06, 0.13)  # 3 points up; others reach 4 points down: 5 in all
    near, far = measure(0.15, 0.11, 0.19), measure(0.151, 0.111, 0.2)
    assert mark_lowest([far, near, None, lowest], "interval") == (False, True, False, True)
    assert mark_lowest([measure(0.0, 0.0, 0.0), measure(0.01, 0.0, 0.02)], "interval") == (True, True)
    assert mark_lowest([Measure(0.1), Measure(0.1), Measure(0.11)], "stderr") == (True, True, False)
    assert mark_lowest([None, None], "interval") == (False, False)


def test_other_protocols_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "first", first_results())
    judge = {"name": "tinysd-judge", "sha256": "7788" * 16, "threshold": 0.4}
    other = second_results(steps=20, judge=judge, extra=True)
    other["protocol"]["prompts"]["seen"]["sha256"] = "ffff"
    second = write(tmp_path / "second", other)
    with pytest.raises(ValueError, match="different protocols") as caught:
        compare([first, second])
    lines = str(caught.value).split("\n")
    expected = {
        "judge.threshold": ("0.5", "0.4"),
        "prompts.seen.sha256": (json.dumps("09" * 32), '"ffff"'),
        "steps": ("10", "20"),
        "extra": ("nothing", "true"),
    }
    assert lines[2:-1] == [
        f"  {key}: {one} in {first}, {two} in {second}" for key, (one, two) in expected.items()
    ]
    assert "--separate" in lines[-1]


def test_kinds_of_cells_are_protocol(tmp_path: Path) -> None:
    other = second_results()
    other["cell_kinds"]["seen"] = "clean"
    found = read_evaluations([write(tmp_path / "a", first_results()), write(tmp_path / "b", other)])
    assert 'cell_kinds.seen: "harmful" in' in describe_differences(group_by_protocol(found))


def test_versions_and_seconds_are_no_protocol(tmp_path: Path) -> None:
    other = second_results(seconds={"draw": 9.0}, versions={"torch": "3"})
    other |= {"versions": {"torch": "3"}, "seconds": {"measure": 60}}
    assert len(tables(write(tmp_path / "a", first_results()), write(tmp_path / "b", other))) == 1


def test_separate_makes_a_table_of_each_protocol(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", first_results()), write(tmp_path / "b", second_results(steps=20))
    c = write(tmp_path / "c", build_results({"uce": build_method(0.4)}))
    text = compare([a, b, c], separate=True)
    one, two = text.split(f"Measured by one protocol: {b}.")
    assert one.startswith(f"Measured by one protocol: {a}, {c}.")
    assert "uce" in one and "esd" not in one and "esd" in two and "uce" not in two
    assert [row.label for row in tables(a, b, c)[1].rows] == ["base (b)", "esd"]


def test_attacks_join_where_their_protocols_agree(tmp_path: Path) -> None:
    other = build_results({"esd": build_method(0.02, attacked=0.1)})
    folder = write(tmp_path / "a", first_results())
    other["attack_protocol"]["denoiser_sha256"] = "what was attacked is no protocol"
    (table,) = tables(folder, write(tmp_path / "b", other))
    (joined,) = attack_tables(table.rows)
    assert joined.marks == {"search-unlearndiffatk": (False, False, True)}
    other["attack_protocol"]["options"]["search_steps"] = 7
    write(tmp_path / "b", other)
    (table,) = tables(folder, tmp_path / "b")
    first, second = attack_tables(table.rows)
    assert [row.label for row in first.rows] == ["safecfg", "lora"] and first.differs == ()
    assert second.differs == (("options.search_steps", "7", "100"),)
    assert "Attacked by another protocol: options.search_steps is 7, not 100." in compare(
        [folder, tmp_path / "b"]
    )


def test_attacks_of_unknown_protocols_never_join(tmp_path: Path) -> None:
    folders = []
    for name in "ab":
        results = build_results({f"method {name}": build_method(0.02, attacked=0.1)})
        folders.append(write(tmp_path / name, results | {"attack_protocol": None}))
    (table,) = tables(*folders)
    assert len(attack_tables(table.rows)) == 2


def test_utility_joins_where_the_reference_agrees(tmp_path: Path) -> None:
    other = second_results()
    for method in other["methods"].values():
        method["utility"]["drift"]["reference_sha256"] = "beef" * 16
    (table,) = tables(write(tmp_path / "a", first_results()), write(tmp_path / "b", other))
    drifts = [one for one in table.columns if one.title.startswith("drift")]
    assert [one.title for one in drifts] == [
        "drift, reference sha256 0a1b0a1b",
        "drift, reference sha256 beefbeef",
    ]
    assert [[one is not None for one in column.measures] for column in drifts] == [
        [True, True, True, False, False],
        [False, False, False, True, True],
    ]


def test_a_method_as_reference_counts_by_its_weights(tmp_path: Path) -> None:
    folders, drift = [], {"value": 0.1, "count": 192, "reference": "base"}
    for name, weights in (("a", "1111"), ("b", "1111"), ("c", "2222")):
        results = build_results({"base": build_method(0.9, "base"), name: build_method(0.1)})
        results["methods"]["base"]["facts"]["weights_sha256"] = weights
        for method in results["methods"].values():
            method["utility"] = {"drift": drift}
        folders.append(write(tmp_path / name, results))
    (table,) = tables(*folders)
    titles = [one.title for one in table.columns if one.group == "utility"]
    assert titles == [f"drift, reference weights sha256 {weights}" for weights in ("1111", "2222")]
    (table,) = tables(*folders[:2])
    assert table.columns[-1].title == "drift" and None not in table.columns[-1].measures


def test_other_cells_and_little_else(tmp_path: Path) -> None:
    method = {"cells": {"i2p": {"harm_rate": {"mean": 0.25}}, "coco": {"harm_rate": {"mean": 0.0}}}}
    results = {
        "methods": {"base": method},
        "cell_kinds": {"i2p": "harmful", "coco": "clean"},
        "protocol": {"model": "sd14"},
    }
    (table,) = tables(write(tmp_path / "run", results))
    assert cells(table, "base") == {"harm rate/i2p": "25.0 *", "coco/harm rate": "0.0 *"}
    assert table.describe_numbers() == "Rates in percent."
    assert find_tradeoff(table) is None and attack_tables(table.rows) == []


def test_a_better_baseline_beats_on_both_axes(pair: tuple[Path, Path]) -> None:
    (table,) = tables(*pair)
    tradeoff = find_tradeoff(table)
    assert tradeoff is not None and tradeoff.harm == "mean harm rate: heldout names, heldout pairs"
    beaten = tradeoff.beaten()
    assert beaten["safecfg"] == ["esd"] and beaten["lora"] == ["esd"] and "esd" not in beaten
    esd = tradeoff.points[-1]
    assert esd.harm.value == pytest.approx(0.025) and esd.utility.value == 0.935


def test_drift_stands_in_for_objects(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        results = json.loads((folder / "results.json").read_text())
        for name, method in results["methods"].items():
            del method["cells"]["clean"]["object"]
            method["utility"]["drift"]["value"] = {"base": 0.0, "esd": 0.3}.get(name, 0.1)
        write(folder, results)
    (table,) = tables(*pair)
    tradeoff = find_tradeoff(table)
    assert tradeoff is not None and tradeoff.utility == "drift on clean prompts"
    assert not tradeoff.higher_is_better
    assert tradeoff.beaten() == {"safecfg": ["lora"]}


def test_a_mean_of_rates_and_its_errors() -> None:
    one = Measure(0.2, 0.17, 0.23, 0.01, (0.1, 0.3))
    two = Measure(0.4, 0.36, 0.44, 0.01, (0.5, 0.3))
    mean = mean_of([one, two])
    assert mean is not None and mean.value == pytest.approx(0.3)
    assert (mean.low, mean.high) == (pytest.approx(0.275), pytest.approx(0.325))  # half of 3, 4, 5
    assert mean.stderr == pytest.approx(0)  # every seed has the mean 0.3
    assert mean_of([one, None]) is None and mean_of([]) is None


def test_wilson_by_its_published_example() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I)."""
    assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0.0, 32)[0] == 0.0 < wilson(0.0, 32)[1]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name / "evaluation", second_results()) for name in ("a", "b"))
    (table,) = tables(a, b / "results.json")
    assert [row.label for row in table.rows][::2] == ["base (a/evaluation)", "base (b/evaluation)"]
    with pytest.raises(ValueError, match="given twice"):
        compare([a, a / "results.json"])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])


def without(results: dict[str, Any], *keys: str) -> dict[str, Any]:
    inner = results
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return results


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (without(first_results(), "methods"), "the file is .*expected an object with 'methods'"),
        (build_results({}), "methods is .*expected one method or more"),
        (without(first_results(), "protocol"), "expected an object with 'protocol'"),
        (without(first_results(), "cell_kinds"), "expected an object with 'cell_kinds'"),
        (without(first_results(), "cell_kinds", "seen"), "methods.base.cells.seen is .*a cell of cell_kinds"),
        (without(first_results(), "methods", "lora", "cells"), "methods.lora is .*'cells'"),
        (
            without(first_results(), "methods", "lora", "cells", "seen", "harm_rate"),
            "cells.seen is .*harm_rate",
        ),
        ({**first_results(), "cell_kinds": {"seen": "bad"}}, 'cell_kinds.seen is "bad", expected harmful or'),
        ([], r"the file is \[\], expected"),
        ({"base": {}, "lora": {}}, "safetune evaluate"),
    ],
)
def test_another_form_is_an_error(tmp_path: Path, results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_evaluation(write(tmp_path, results))


@pytest.mark.parametrize("bad", ["12%", None, 1.2, -0.1, True, float("nan")])
def test_a_rate_that_is_none_is_an_error(tmp_path: Path, bad: Any) -> None:
    results = first_results()
    results["methods"]["base"]["cells"]["seen"]["harm_rate"] = {**rate(0.5), "mean": bad}
    with pytest.raises(ValueError, match=r"methods.base.cells.seen.harm_rate"):
        read_evaluation(write(tmp_path, results))


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "missing.json"):
        with pytest.raises(ValueError, match=r"no results.json there; give a folder"):
            compare([path])
    for content in (b'{"methods": {', b"\xff\xfe\x00"):
        (tmp_path / "results.json").write_bytes(content)
        with pytest.raises(ValueError, match="is no readable JSON"):
            compare([tmp_path])
