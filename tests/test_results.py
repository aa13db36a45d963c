"""The table of all methods: its stages, what it joins, and a page that says who wins, whoever it is."""

import json
from pathlib import Path

import pytest
import yaml

from safetune.evaluation.results_page import CELLS, harm_table, results_page, within_error
from safetune.results import ATTACKED, join_results, methods_of_results, results_stages, write_methods

JUDGE = {
    "name": "tinysd@0.5",
    "unit": "picture",
    "judges": {"tinysd": {"version": "1.0", "weights_sha256": "0123456789abcdef"}},
}


def rate(mean: float, error: float | None = 0.01) -> dict:
    return {"mean": mean, "stderr": error}


def block(harm: float, clean: float = 0.95, attack: float | None = None) -> dict:
    cells = {cell: {"harm_rate": rate(harm)} for cell in CELLS}
    cells["clean"] = {"harm_rate": rate(0.01), **dict.fromkeys(("subject", "place", "object"), rate(clean))}
    attacks = {} if attack is None else {"search": {"pre_attack_rate": harm, "attack_rate": attack}}
    return {
        "cells": cells,
        "categories": {"gore": rate(harm)},
        "utility": {"drift": {"value": 0.0123}},
        "attacks": attacks,
    }


def results() -> dict:
    return {
        "methods": {
            "base": block(0.97, attack=1.0),
            "SafeCFG": block(0.05, attack=0.5),
            "safe LoRA": block(0.04),
            "SLD max": block(0.01, clean=0.6),
        },
        "protocol": {"seeds": [0, 1, 2], "judge": JUDGE},
        "attack_protocol": {"steps": 10, "judge": {}},
        "versions": {"torch": "2"},
        "seconds": {"measure": 90.0, "table": 30.0},
    }


def test_the_page_says_who_wins_and_at_what_price() -> None:
    page = results_page(results())
    assert "| base | 97.0 ± 1.0 | 97.0 ± 1.0 | 97.0 ± 1.0 | 97.0 ± 1.0 |" in page
    assert "| SafeCFG | 5 → 50 |" in page and "| base | 97 → 100 |" in page
    assert "- seen: lowest SLD max, 1.0 ± 1.0; of those that keep every clean rate within a point" in page
    assert "within a point, safe LoRA, 4.0 ± 1.0." in page
    assert "for what each does. Not attacked: safe LoRA, SLD max." in page
    assert "- Every clean rate within a point of the base: base, SafeCFG, safe LoRA." in page
    assert "- judge: tinysd@0.5, by the picture: tinysd 1.0, weights 0123456789ab\n" in page
    assert "- seconds: measure 90, table 30; 2 minutes in all" in page


def test_within_error_by_hand() -> None:
    assert within_error([rate(0.02, 0.01), rate(0.035, 0.01), rate(0.05, 0.01)]) == [True, True, False]
    assert within_error([rate(0.02, None), rate(0.03, None)]) == [True, False]
    assert "**4.0 ± 1.0**" not in harm_table(results()["methods"])


def test_every_attacked_method_is_measured_and_its_results_joined(tmp_path: Path) -> None:
    out, demo = tmp_path / "results", tmp_path / "demo"
    (out / "evaluation").mkdir(parents=True)
    demo.mkdir()
    write_methods(out / "methods.yaml", out, demo)
    named = ["base", *yaml.safe_load((out / "methods.yaml").read_text())]
    assert set(ATTACKED) <= set(named) and list(methods_of_results(out, demo)) == named[1:]
    measured = {"methods": {name: {"grid": [f"{name}/seen.png"]} for name in named}}
    (out / "evaluation" / "results.json").write_text(json.dumps(measured))
    for folder in (out, demo):
        (folder / "seconds.json").write_text(json.dumps({folder.name: 1.0}))
    stages = {stage.name: stage for stage in results_stages(out, demo, quick=True)}
    attacks = [stages[f"attack {name}"].product for name in ATTACKED]
    for number, file in enumerate(attacks):
        file.parent.mkdir(parents=True)
        protocol = {"steps": 10, "denoiser_sha256": str(number)}
        file.write_text(json.dumps({"attacks": {"search": number}, "protocol": protocol}))
    joined = join_results(out, demo)
    assert [joined["methods"][name]["attacks"]["search"] for name in ATTACKED] == list(range(len(ATTACKED)))
    assert joined["methods"]["base"]["grid"] == ["evaluation/base/seen.png"]
    assert joined["attack_protocol"] == {"steps": 10} and joined["seconds"] == {"results": 1.0, "demo": 1.0}
    attacks[2].write_text(json.dumps({"attacks": {}, "protocol": {"steps": 11}}))
    with pytest.raises(RuntimeError, match="were not run alike"):
        join_results(out, demo)
