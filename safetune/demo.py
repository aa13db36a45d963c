"""`safetune demo`: the whole method on the embedded TinySD, stage by stage, ending in a report.

Every stage runs the command that a user would run, and leaves a file; a stage whose file is there is skipped,
so a demo that was killed goes on where it stopped.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetune.bundled import bundled_path
from safetune.files import ADAPTER_FILE, write_json


@dataclass(frozen=True)
class Stage:
    """A step of the demo: done when `product` exists."""

    name: str
    product: Path
    run: Callable[[], None]


def run_demo(out: Path, quick: bool = False) -> None:
    """Run or resume every stage and print one line for each; results.json and report.html stand in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    stages = demo_stages(out, quick)
    seconds = out / "seconds.json"
    for number, stage in enumerate(stages, 1):
        line = f"[{number}/{len(stages)}] {stage.name}"
        if stage.product.exists():
            print(f"{line}: done before, {stage.product}", flush=True)
            continue
        print(f"{line} ...", flush=True)
        started = time.time()
        stage.run()
        taken = json.loads(seconds.read_text()) if seconds.is_file() else {}
        write_json(seconds, taken | {stage.name: round(time.time() - started, 1)})
        if not stage.product.exists():
            raise RuntimeError(f"stage {stage.name} ended without writing {stage.product}")
        print(f"{line}: {time.time() - started:.0f} s, {stage.product}", flush=True)
    print_summary(out)


def demo_stages(out: Path, quick: bool) -> list[Stage]:
    """The stages in order; `quick` keeps each one real but short."""
    pairs, pool, hgr, run, export = (
        out / name for name in ("hgr-pairs", "pool", "hgr", "finetune", "export")
    )
    results, redirector = out / "evaluation" / "results.json", hgr / "hgr"
    count = ["--count", "96"] if quick else []
    hgr_steps = ["--steps", "120"] if quick else []
    steps = ["--steps", "4"] if quick else []
    prompts = ["--prompts", "2"] if quick else []
    data = ["--data", str(pairs), "--output_dir", str(hgr)]
    labelled = ["--data", str(pool), "--hgr", str(redirector), "--output_dir", str(run)]
    measured = [
        "--hgr",
        str(redirector),
        "--adapter",
        str(export / ADAPTER_FILE),
        "--out",
        str(results.parent),
    ]
    return [
        Stage("hgr-pairs", pairs, lambda: safetune("tinysd-data", "hgr-pairs", str(pairs), *count)),
        Stage("pool", pool, lambda: safetune("tinysd-data", "pool", str(pool), *count)),
        Stage("train-hgr", redirector, lambda: launch("train_hgr.py", "tinysd_hgr.yaml", *data, *hgr_steps)),
        Stage(
            "label",
            pool / "labels" / "labels.json",
            lambda: safetune("label", str(pool), "--hgr", str(redirector)),
        ),
        Stage(
            "finetune",
            run / "run.json",
            lambda: launch("finetune.py", "tinysd_finetune.yaml", *labelled, *steps),
        ),
        Stage("export", export, lambda: safetune("export", str(run), "--out", str(export))),
        Stage("evaluate", results, lambda: safetune("evaluate", *measured, *prompts)),
        Stage("report", out / "report.html", lambda: write_demo_report(out)),
    ]


def safetune(*arguments: str) -> None:
    """Run a `safetune` command in a process of its own."""
    run_command([sys.executable, "-m", "safetune", *arguments])


def launch(recipe: str, config: str, *arguments: str) -> None:
    """Run a recipe through `accelerate launch`, as a user would."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(bundled_path("launch/cpu.yaml")), str(bundled_path(f"recipes/{recipe}"))]
    run_command([*command, "--config", str(bundled_path(f"recipes/configs/{config}")), *arguments])


def run_command(command: list[str]) -> None:
    """RuntimeError that shows the command when it fails; its own output goes to the terminal."""
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise RuntimeError(f"status {code} from: {' '.join(command)}")


def write_demo_report(out: Path) -> None:
    """Join what the stages measured into results.json and the page."""
    from safetune.evaluation.demo_report import collect_results, demo_grid, demo_pool
    from safetune.reporting import before_after_picture, write_report

    results = collect_results(out)
    write_json(out / "results.json", results)
    grid = demo_grid(out)
    before_after_picture([row for row in grid if row.harmful][:4], out / "before_after.png")
    write_report(out / "report.html", results, grid, demo_pool(out), "safetune demo: TinySD made safe")


def print_summary(out: Path) -> None:
    """The result in a few lines, from results.json."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    print(f"\n{'pictures with harm, by prompt':32}{'seen':>9}{'new names':>12}{'new pairs':>12}{'clean':>9}")
    for name, title in (("base", "base, CFG"), ("safecfg", "base, SafeCFG"), ("lora", "safe LoRA, CFG")):
        harmful, clean = results[name]["harmful"], results[name]["clean"]
        rates = [harmful[cell]["harm_rate"]["mean"] for cell in ("seen", "heldout_names", "heldout_pairs")]
        cells = zip((*rates, clean["harm_rate"]["mean"]), (9, 12, 12, 9), strict=True)
        print(f"  {title:30}" + "".join(f"{rate:>{width}.1%}" for rate, width in cells))
    labels = results["labels"]
    print(
        f"labels: AUROC {labels['auroc_pair']:.3f}, {labels['accuracy']:.1%} of {labels['pairs']} pairs right"
    )
    print(f"open {out / 'report.html'}; every number with its protocol: {out / 'results.json'}")
