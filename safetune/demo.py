"""`safetune demo`: the whole method on the embedded TinySD, stage by stage, ending in a report.

Every stage runs the command that a user would run, and leaves a file; a stage whose file is there is skipped,
so a demo that was killed goes on where it stopped.
"""

import json
from pathlib import Path
from typing import Any

from safetune.files import ADAPTER_FILE, write_json
from safetune.stages import Stage, launch, run_stages, safetune


def run_demo(out: Path, quick: bool = False) -> None:
    """Run or resume every stage and print one line for each; results.json and report.html stand in `out`."""
    run_stages(demo_stages(out, quick), out)
    print_summary(out)


def demo_stages(out: Path, quick: bool) -> list[Stage]:
    """The stages in order; `quick` keeps each one real but short."""
    pairs, pool, hgr, run, export = (
        out / name for name in ("hgr-pairs", "pool", "hgr", "finetune", "export")
    )
    results, redirector = out / "evaluation" / "results.json", hgr / "hgr"
    count = ["--count", "80"] if quick else []
    hgr_steps = ["--warm_steps", "100", "--steps", "40"] if quick else []
    steps = ["--steps", "4", "--cache_targets", "1", "--picture_steps", "2"] if quick else []
    prompts = ["--prompts", "2"] if quick else []
    data = ["--data", str(pairs), "--output_dir", str(hgr)]
    labelled = ["--data", str(pool), "--hgr", str(redirector), "--output_dir", str(run)]
    cells = "seen,heldout_names,heldout_pairs,clean"
    measured = [
        "--cells",
        cells,
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
