"""The `safetune` command: parses, calls one function, prints the summary."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


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

    label = commands.add_parser(
        "label",
        help="score unlabelled prompt-image pairs for harmfulness",
        description="Writes part-NNNNN.parquet and labels.json to DATA/labels or --out. "
        "An interrupted run goes on.",
    )
    label.add_argument("data", help="image folder with metadata.jsonl, folder of parquet files, or hub name")
    label.add_argument("--hgr", type=Path, required=True, help="folder of the trained redirector")
    label.add_argument(
        "--model", default="tinysd", help="base model: tinysd, folder or hub name (default: %(default)s)"
    )
    label.add_argument("--out", type=Path, help="folder of the labels (default: DATA/labels)")
    label.add_argument("--text-column", default="text", help="column of the captions (default: %(default)s)")
    label.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="precision of the base model (default: what the hardware is fast in)",
    )
    label.add_argument("--resolution", type=int, default=64, help="pixels a side (default: %(default)s)")

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
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        COMMANDS[args.command](args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune {args.command}: {mistake}", file=sys.stderr)
        return 2
    return 0


def run_demo_command(args: argparse.Namespace) -> None:
    """Run `safetune demo`."""
    from safetune.demo import run_demo

    run_demo(args.out, quick=args.quick)


def run_label(args: argparse.Namespace) -> None:
    """Run `safetune label`."""
    import torch

    from safetune.backbone import load_backbone
    from safetune.hgr import HGR
    from safetune.labeling.labeler import LabelOptions, label_pairs
    from safetune.pairs import load_pairs
    from safetune.precision import fast_dtype

    options = LabelOptions(text_column=args.text_column, resolution=args.resolution)
    dataset = load_pairs(args.data, args.text_column)
    folder = args.out or Path(args.data) / "labels"
    hgr = HGR.from_pretrained(args.hgr).eval().requires_grad_(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fast_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)
    backbone = load_backbone(args.model, device, dtype)
    labels = label_pairs(backbone, hgr.to(device), dataset, folder, options)
    print(labels.groupby(["label", "category"]).size().unstack(0, fill_value=0).to_string())
    print(f"{len(labels)} pairs labelled; labels in {folder}")


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
    "label": run_label,
    "export": run_export,
    "evaluate": run_evaluate,
    "tinysd-data": run_tinysd_data,
}
