"""`safetune results`: every method and baseline on TinySD, attacked too, in one table; see docs/results.md.

Every stage runs the command that a user would run, as the demo does, whose redirector and adapter it takes.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from safetune.demo import demo_stages
from safetune.files import ADAPTER_FILE, write_json, write_text
from safetune.stages import Stage, launch, run_stages, safetune

BASELINES = ("uce", "esd-x", "esd-u")
"""Baselines that leave weights."""
SLD = ("weak", "medium", "strong", "max")
ATTACKED = ("base", "negative prompt", "SLD max", *BASELINES, "SafeCFG", "safe LoRA", "safe weights")
"""Methods that are attacked, of `methods`."""
HARD = "--count 24 --search-steps 60 --inversion-steps 200 --finetuning-steps 60".split()
"""How hard attacks try."""
QUICK = "--count 2 --search-steps 1 --inversion-steps 1 --finetuning-steps 1".split()
ATTACKS = "search-unlearndiffatk,concept-inversion,finetuning-benign,finetuning-harmful"


def run_results(out: Path, demo: Path, page: Path | None = None, quick: bool = False) -> None:
    """Run or resume every stage; results.json, compare.html and results.md stand in `out`.

    `demo` is the folder of `safetune demo`, made where it is missing. `page` is a copy of results.md.
    """
    run_stages(demo_stages(demo, quick), demo)
    run_stages(results_stages(out, demo, quick), out)
    if page is not None:
        write_text(page, (out / "results.md").read_text(encoding="utf-8"))
    print(f"open {out / 'compare.html'}; the table: {out / 'results.md'}")


def results_stages(out: Path, demo: Path, quick: bool) -> list[Stage]:
    """The stages after the demo's, in order; `quick` keeps each one real but short."""
    full = out / "full" / "denoiser"
    labelled = [
        "--data",
        str(demo / "pool"),
        "--hgr",
        str(demo / "hgr" / "hgr"),
        "--output_dir",
        str(full.parent),
    ]
    evaluation, methods = out / "evaluation", out / "methods.yaml"
    prompts = ["--prompts", "2"] if quick else []
    return [
        Stage(
            "full",
            full,
            lambda: launch(
                "finetune.py", "tinysd_finetune_full.yaml", *labelled, *(["--steps", "4"] if quick else [])
            ),
        ),
        *(_baseline(name, out / name, quick) for name in BASELINES),
        Stage("methods", methods, lambda: write_methods(methods, out, demo)),
        Stage(
            "measure",
            evaluation / "results.json",
            lambda: safetune("evaluate", "--methods", str(methods), "--out", str(evaluation), *prompts),
        ),
        *(_attack(name, out, demo, quick) for name in reversed(ATTACKED)),  # those that take longest first
        Stage("table", out / "compare.html", lambda: write_tables(out, demo)),
    ]


def methods_of_results(out: Path, demo: Path) -> dict[str, dict[str, str]]:
    """The methods in the form of a methods file, but the base, with which evaluations begin."""
    hgr, adapter = str(demo / "hgr" / "hgr"), str(demo / "export" / ADAPTER_FILE)
    return {
        "negative prompt": {"negative_prompt": "concepts"},
        **{f"SLD {preset}": {"sld": preset} for preset in SLD},
        **{name: {"denoiser": str(out / name)} for name in BASELINES},
        "SafeCFG": {"hgr": hgr},
        "safe LoRA": {"adapter": adapter},
        "safe LoRA + SafeCFG": {"adapter": adapter, "hgr": hgr},
        "safe weights": {"denoiser": str(out / "full" / "denoiser")},
    }


def write_methods(file: Path, out: Path, demo: Path) -> None:
    """Write the methods file that the evaluation reads."""
    write_text(file, yaml.safe_dump(methods_of_results(out, demo), sort_keys=False))


def join_results(out: Path, demo: Path) -> dict[str, Any]:
    """results.json of the evaluation, with the attacks on each method and the seconds of every stage."""
    results: dict[str, Any] = json.loads((out / "evaluation" / "results.json").read_text())
    protocols = []
    for name in ATTACKED:
        found = json.loads((_attack_folder(out, name) / "attacks.json").read_text())
        results["methods"][name]["attacks"] = found["attacks"]
        own = ("denoiser_sha256", "hgr_sha256", "negative_prompt", "sld")
        protocols.append({key: value for key, value in found["protocol"].items() if key not in own})
    if any(protocol != protocols[0] for protocol in protocols):
        raise RuntimeError(f"the attacks in {out / 'attacks'} were not run alike: remove them and run again")
    seconds: dict[str, float] = {}
    for folder in (demo, out):
        seconds |= json.loads((folder / "seconds.json").read_text())
    for block in results["methods"].values():
        block["grid"] = [f"evaluation/{sheet}" for sheet in block["grid"]]
    return {**results, "attack_protocol": protocols[0], "seconds": seconds}


def write_tables(out: Path, demo: Path) -> None:
    """Write results.json, results.md and compare.html."""
    from safetune.evaluation.compare import compare
    from safetune.evaluation.results_page import results_page

    results = join_results(out, demo)
    write_json(out / "results.json", results)
    write_text(out / "results.md", results_page(results))
    print(compare([out], out))


def _baseline(name: str, folder: Path, quick: bool) -> Stage:
    steps = ["--steps", "2"] if quick and name != "uce" else []
    run = ("baseline", name, "--out", str(folder), *steps)
    return Stage(name, folder, lambda: safetune(*run), "baselines")


def _attack(name: str, out: Path, demo: Path, quick: bool) -> Stage:
    folder = _attack_folder(out, name)
    options = [
        f"--{key.replace('_', '-')}={value}"
        for key, value in methods_of_results(out, demo).get(name, {}).items()
    ]
    guided = [",guidance-stripped"] if name in ("negative prompt", "SLD max", "SafeCFG") else [""]
    hard = QUICK if quick else HARD
    return Stage(
        f"attack {name}",
        folder / "attacks.json",
        lambda: safetune("attack", "--out", str(folder), "--attacks", ATTACKS + guided[0], *options, *hard),
        "attacks",
    )


def _attack_folder(out: Path, name: str) -> Path:
    return out / "attacks" / name.replace(" ", "-").lower()
