"""The `safetune` command: parses, calls one function, prints the summary."""

import argparse
import json
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

# Commands that are scripts of their own, which `accelerate launch` also runs; they parse what follows.
SCRIPTS = {
    "label": ("recipes/label.py", "score unlabelled prompt-image pairs for harmfulness"),
    "review": ("data_tools/review.py", "look at uncertain labels in the browser and correct them"),
    "generate": ("data_tools/generate.py", "draw a picture for every prompt of a file"),
    "scrape": ("data_tools/scrape.py", "fetch pictures by URL into tars"),
    "dedupe": ("data_tools/dedupe.py", "find pictures that are there twice"),
    "cache": ("data_tools/cache.py", "encode pictures and captions once, for many runs"),
}


def build_parser() -> argparse.ArgumentParser:
    """Options of every subcommand, with help that teaches."""
    parser = argparse.ArgumentParser(
        prog="safetune",
        description="Make text-to-image diffusion models safe by unsupervised fine-tuning (after SafeCFG).",
        epilog="Training runs are launched with accelerate: accelerate launch recipes/train_hgr.py --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole method on the embedded TinySD, ending in a report")
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)"
    )
    demo.add_argument(
        "--quick", action="store_true", help="a few steps and pictures: shows that it runs, measures nothing"
    )

    for name, (_, text) in SCRIPTS.items():
        commands.add_parser(name, help=text, add_help=False)

    export = commands.add_parser(
        "export", help="write and prove an adapter that others load without safetune"
    )
    export.add_argument("run", type=Path, help="run folder of recipes/finetune.py")
    export.add_argument(
        "--format", action="append", choices=["diffusers"], help="may be repeated (default: diffusers)"
    )
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument("--force", action="store_true", help="replace what is in the folder")

    evaluate = commands.add_parser("evaluate", help="measure base, SafeCFG and adapter with TinySD's judge")
    evaluate.add_argument("--model", default="tinysd", help="base model (default: %(default)s)")
    evaluate.add_argument("--hgr", type=Path, help="redirector to measure as SafeCFG")
    evaluate.add_argument("--adapter", type=Path, help="adapter file to measure with plain CFG")
    evaluate.add_argument(
        "--out", type=Path, required=True, help="folder of pictures, raw scores and results.json"
    )
    evaluate.add_argument("--full", action="store_true", help="200 prompts a cell instead of 64")
    evaluate.add_argument("--prompts", type=int, help="prompts a cell, instead of 64 or 200")

    data = commands.add_parser(
        "tinysd-data", help="write TinySD's data sets: the redirector's pairs or a pool"
    )
    data.add_argument("kind", choices=["hgr-pairs", "pool"], help="what to write")
    data.add_argument("out", type=Path, help="folder to write")
    data.add_argument("--count", type=int, help="number of pairs (default: 2048 for hgr-pairs, 480 for pool)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; a mistake of the user ends with status 2 and one message."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SCRIPTS:
        return run_script(words[0], words[1:])
    args = build_parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        COMMANDS[args.command](args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune {args.command}: {mistake}", file=sys.stderr)
        return 2
    return 0


def run_script(name: str, words: list[str]) -> int:
    """Run a script with its own options, in this process. The pool of `label` may stand without --data."""
    from safetune.bundled import bundled_path

    path, _ = SCRIPTS[name]
    if name == "label":
        # A recipe's options are fields: --text_column; here --text-column is as good.
        words = [word if word[:2] != "--" else _with_underscores(word) for word in words]
        words = ["--data"] * (bool(words) and words[0][0] != "-") + words
    sys.argv = [f"safetune {name}", *words]
    try:
        runpy.run_path(str(bundled_path(path)), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 2
        return int(end.code or 0)
    return 0


def _with_underscores(option: str) -> str:
    name, equals, value = option.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def run_demo_command(args: argparse.Namespace) -> None:
    """Run `safetune demo`."""
    from safetune.demo import run_demo

    run_demo(args.out, quick=args.quick)


def run_export(args: argparse.Namespace) -> None:
    """Run `safetune export`."""
    from safetune.export import export_run

    facts = export_run(args.run, args.out, tuple(args.format or ["diffusers"]), args.force)
    print(
        f"{args.out / str(facts['file'])}: {facts['bytes']} bytes, "
        f"differs from the trained weights by {facts['max_abs_diff']:.1e}"
    )


def run_evaluate(args: argparse.Namespace) -> None:
    """Run `safetune evaluate`."""
    from safetune.evaluation.evaluate import evaluate
    from safetune.files import write_json

    prompts = args.prompts or (200 if args.full else 64)
    results = evaluate(args.out, args.model, args.hgr, args.adapter, prompts)
    write_json(args.out / "results.json", results)
    print(json.dumps({name: block for name, block in results.items() if name != "protocol"}, indent=1))
    print(f"written to {args.out / 'results.json'}")


def run_tinysd_data(args: argparse.Namespace) -> None:
    """Run `safetune tinysd-data`."""
    from safetune.tinysd.datasets import write_hgr_pairs, write_pool

    if args.kind == "hgr-pairs":
        write_hgr_pairs(args.out, args.count or 2048)
    else:
        write_pool(args.out, args.out.with_name(args.out.name + "-truth.json"), args.count or 480)
    print(f"written to {args.out}")


COMMANDS = {
    "demo": run_demo_command,
    "export": run_export,
    "evaluate": run_evaluate,
    "tinysd-data": run_tinysd_data,
}
