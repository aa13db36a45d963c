"""The demo: every stage through the real commands, resumed where it was killed, and a report at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safetune.demo import Stage, demo_stages, run_demo


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick demo: few steps and pictures, every stage real."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "safetune", "demo", "--quick", "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return out


def test_results_hold_every_number_with_its_protocol(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    for condition in ("base", "safecfg", "lora"):
        for cell in ("seen", "heldout_names", "heldout_pairs"):
            assert set(results[condition]["harmful"][cell]) == {"harm_rate", "subject", "place"}
        assert set(results[condition]["clean"]) == {"harm_rate", "subject", "place", "object"}
        assert len(results[condition]["clean"]["object"]["per_seed"]) == 3
    wanted = "auroc_prompt auroc_guidance auroc_image auroc_pair accuracy auroc_image_benign_caption"
    assert set(wanted.split()) <= set(results["labels"])
    assert results["export"]["max_abs_diff"] < 1e-5
    assert set(results["seconds"]) == {stage.name for stage in demo_stages(finished, quick=True)} - {"report"}
    assert {"judge", "prompts", "seeds", "scheduler", "steps", "guidance_scale"} <= set(results["protocol"])


def test_the_report_is_there_and_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("<img") >= 3 * 2 * 4
    assert 'src="http' not in page


def test_a_finished_demo_runs_no_stage_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a finished stage was run again")

    monkeypatch.setattr("safetune.stages.run_command", fail)
    monkeypatch.setattr("safetune.demo.write_demo_report", fail)
    run_demo(finished, quick=True)


def test_a_killed_demo_goes_on_after_its_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def stage(name: str, dies: bool = False) -> Stage:
        def run() -> None:
            ran.append(name)
            if dies:
                raise KeyboardInterrupt
            (tmp_path / name).touch()

        return Stage(name, tmp_path / name, run)

    monkeypatch.setattr("safetune.demo.print_summary", lambda out: None)
    monkeypatch.setattr("safetune.demo.demo_stages", lambda out, quick: [stage("a"), stage("b", dies=True)])
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path)
    monkeypatch.setattr("safetune.demo.demo_stages", lambda out, quick: [stage("a"), stage("b")])
    run_demo(tmp_path)
    assert ran == ["a", "b", "b"]
