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

    add_export_parsers(commands)

    add_evaluate_parser(commands)

    attack = commands.add_parser(
        "attack",
        help="attack a model and what defends it, and report what gets through",
    )
    attack.add_argument("--model", default="tinysd", help="base model (default: %(default)s)")
    attack.add_argument("--adapter", type=Path, help="adapter file that defends it")
    attack.add_argument("--denoiser", type=Path, help="folder of a full fine-tune's denoiser that defends it")
    attack.add_argument("--hgr", type=Path, help="redirector that defends it, as SafeCFG")
    attack.add_argument(
        "--negative-prompt", help='one for all prompts; "concepts": the words baselines are told'
    )
    attack.add_argument("--sld", help="Safe Latent Diffusion: weak, medium, strong or max")
    attack.add_argument("--attacks", default="", help="names with commas (default: all that can be run)")
    attack.add_argument(
        "--count", type=at_least_one, default=32, help="prompts to attack (default: %(default)s)"
    )
    attack.add_argument(
        "--search-steps", type=at_least_one, default=100, help="of a search (default: %(default)s)"
    )
    attack.add_argument(
        "--inversion-steps",
        type=at_least_one,
        default=500,
        help="of concept inversion (default: %(default)s)",
    )
    attack.add_argument(
        "--finetuning-steps", type=at_least_one, default=100, help="of training on (default: %(default)s)"
    )
    attack.add_argument(
        "--out", type=Path, required=True, help="folder of attacks.json; attacks done there are not run again"
    )

    estimate = commands.add_parser(
        "estimate", help="memory of a fine-tuning run, before anything is downloaded"
    )
    estimate.add_argument("config", type=Path, help="YAML file of options for recipes/finetune.py")
    estimate.add_argument("--gpus", type=int, help="number of GPUs (default: the launch file's, or 1)")
    estimate.add_argument("--launch", type=Path, help="launch file, such as launch/zero3.yaml")
    estimate.add_argument("--architecture", help="what the model was made from: sd15, sd21, sdxl or sd35")
    estimate.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")

    data = commands.add_parser(
        "tinysd-data", help="write TinySD's data sets: the redirector's pairs or a pool"
    )
    data.add_argument("kind", choices=["hgr-pairs", "pool"], help="what to write")
    data.add_argument("out", type=Path, help="folder to write")
    data.add_argument("--count", type=int, help="number of pairs (default: 4096 for hgr-pairs, 480 for pool)")
    return parser


def add_evaluate_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`safetune evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="draw and judge the base, and what makes it safe",
        description="Draws a suite's prompts by every method with the same seeds, judges the pictures, and "
        "writes rates with their whole protocol. Pictures already made are kept. "
        "Default: TinySD, its suite and its judge.",
    )
    evaluate.add_argument("--model", default="tinysd", help="base model (default: %(default)s)")
    evaluate.add_argument("--hgr", type=Path, help="redirector to measure as SafeCFG")
    evaluate.add_argument("--adapter", type=Path, help="adapter file to measure with plain CFG")
    evaluate.add_argument("--denoiser", type=Path, help="folder of a full fine-tune's denoiser to measure")
    evaluate.add_argument(
        "--methods",
        type=Path,
        help="YAML file of more methods, NAME: {adapter, denoiser, hgr, negative_prompt, sld}",
    )
    evaluate.add_argument(
        "--out", type=Path, required=True, help="folder of pictures, raw scores and results.json"
    )
    evaluate.add_argument("--suite", default="tinysd", help="tinysd, i2p, coco, ... (default: %(default)s)")
    evaluate.add_argument("--prompts-file", type=Path, help="prompts of a suite other than tinysd")
    evaluate.add_argument(
        "--columns",
        type=named_values,
        default={},
        metavar="FIELD=NAME,...",
        help="columns of that file: prompt=NAME,seed=NAME",
    )
    evaluate.add_argument("--cells", default="", help="TinySD's cells with commas (default: all)")
    evaluate.add_argument(
        "--concepts", type=Path, help="words of the harm, a line each, for negative prompt and SLD"
    )
    evaluate.add_argument(
        "--preset",
        help="a paper's judges, classes, thresholds and way to draw, see docs/evaluation.md "
        "(default: tinysd@0.5, where TinySD draws)",
    )
    evaluate.add_argument("--q16-clip", metavar="MODEL", help="CLIP of the judge Q16, folder or hub name")
    evaluate.add_argument(
        "--judge-weights",
        type=named_values,
        action="append",
        default=[],
        metavar="JUDGE=FILE",
        help="weights that a judge cannot bring: q16=FILE, nudenet-classifier=FILE",
    )
    evaluate.add_argument(
        "--steps", type=at_least_one, help="denoising steps (default: the preset's, else 10)"
    )
    evaluate.add_argument("--guidance-scale", type=float, help="(default: the preset's, else 5)")
    evaluate.add_argument("--images-per-prompt", type=at_least_one, help="seeds (default: the preset's)")
    evaluate.add_argument("--full", action="store_true", help="200 prompts a cell instead of 64")
    evaluate.add_argument("--prompts", type=at_least_one, help="prompts a cell, instead of 64 or 200")

    recount = commands.add_parser(
        "recount", help="count an evaluation's raw scores by another preset; nothing is drawn or judged"
    )
    recount.add_argument("folder", type=Path, help="folder of `safetune evaluate`")
    recount.add_argument("--preset", required=True, help="one that asks the same judges")

    compare = commands.add_parser("compare", help="evaluations side by side, if one protocol measured them")
    compare.add_argument("folders", type=Path, nargs="+", help="folders of `safetune evaluate`")
    compare.add_argument("--out", type=Path, help="folder of compare.html")
    compare.add_argument(
        "--separate", action="store_true", help="a table for each protocol, instead of an error"
    )

    baseline = commands.add_parser(
        "baseline", help="another method's denoiser, for --denoiser of evaluate and attack"
    )
    baseline.add_argument("name", choices=["uce", "esd-x", "esd-u"], help="see docs/baselines.md")
    baseline.add_argument("--out", type=Path, required=True, help="folder to write")
    baseline.add_argument("--model", default="tinysd", help="base model (default: %(default)s)")
    baseline.add_argument(
        "--concepts", type=Path, help="what to erase, a line each (default: TinySD's seen names)"
    )
    baseline.add_argument("--preserve", type=Path, help="what UCE is to keep, a line each")
    baseline.add_argument("--steps", type=at_least_one, help="ESD's optimizer steps")
    baseline.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")

    results = commands.add_parser(
        "results", help="all methods, baselines and attacks on TinySD in one table: docs/results.md"
    )
    results.add_argument(
        "--out", type=Path, default=Path("runs/results"), help="folder of the run (default: %(default)s)"
    )
    results.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), help="folder of the demo, made where it is missing"
    )
    results.add_argument("--page", type=Path, help="where to put a copy of the table in Markdown")
    results.add_argument("--quick", action="store_true", help="shows that it runs, measures nothing")


def add_export_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`export` and what belongs to it: extract, merge-adapters, verify."""
    export = commands.add_parser("export", help="write and prove weights that others load without safetune")
    export.add_argument("run", type=Path, help="run folder of recipes/finetune.py, extract or merge-adapters")
    export.add_argument(
        "--formats",
        default="",
        help="of diffusers, kohya, comfyui, merged, single-file; with commas (default: diffusers, or merged "
        "for a full fine-tune)",
    )
    export.add_argument("--dtype", default="fp32", help="fp32, fp16 or bf16 (default: %(default)s)")
    export.add_argument(
        "--strength", type=float, default=1.0, help="multiplied into an adapter (default: %(default)s)"
    )
    export.add_argument("--evaluation", type=Path, help="folder of `safetune evaluate`, for the card")
    export.add_argument("--license", default="other", help="the card's license, as the hub names it")
    export.add_argument("--push-to-hub", metavar="NAME", help="repository to push to, after the proof")
    export.add_argument("--private", action="store_true", help="make a new repository private")

    extract = commands.add_parser("extract", help="make a LoRA of a full fine-tune or a DoRA, for export")
    extract.add_argument("run", type=Path, help="run folder of recipes/finetune.py")
    extract.add_argument("--rank", type=int, default=64, help="rank of the LoRA (default: %(default)s)")

    merge = commands.add_parser("merge-adapters", help="make one LoRA of several, for export")
    merge.add_argument("files", type=Path, nargs="+", help="adapter files of any of the formats")
    merge.add_argument("--model", required=True, help="their base model")
    merge.add_argument("--weights", required=True, help="one for each file, with commas")
    merge.add_argument(
        "--method",
        default="cat",
        help="PEFT's combination type: cat (exact), svd, linear, ties, dare_linear, dare_ties, "
        "magnitude_prune, and the last four with _svd (default: %(default)s)",
    )
    merge.add_argument("--density", type=float, help="share of values that ties, dare and pruning keep")
    merge.add_argument("--rank", type=int, help="rank of svd methods (default: the largest of the files)")
    merge.add_argument("--seed", type=int, default=0, help="seed of dare's draws (default: %(default)s)")

    for parser in (export, extract, merge):
        parser.add_argument("--out", type=Path, required=True, help="folder to write")
        parser.add_argument("--force", action="store_true", help="replace what is in the folder")

    verify = commands.add_parser("verify", help="check an adapter file against its base model")
    verify.add_argument("file", type=Path, help="safetensors file in diffusers', kohya's or ComfyUI's names")
    verify.add_argument("--base", required=True, help="base model: tinysd, a folder, a file or a hub name")
    verify.add_argument(
        "--probe", type=Path, help="probe.safetensors (default: beside the file or in proof/)"
    )


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


def at_least_one(text: str) -> int:
    """A whole number of 1 or more, as argparse reads it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of 1 or more")
    return int(text)


def named_values(text: str) -> dict[str, str]:
    """NAME=VALUE pairs with commas between them, as argparse reads them."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(name and value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=VALUE, several with commas between them")
    return {name: value for name, _, value in pairs}


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
    from safetune.export.evaluated import read_evaluation
    from safetune.export.hub import push_export

    results, grid = read_evaluation(args.evaluation) if args.evaluation else (None, [])
    try:
        facts = export_run(
            args.run,
            args.out,
            [name for name in args.formats.split(",") if name],
            dtype=args.dtype,
            strength=args.strength,
            force=args.force,
            license_name=args.license,
            results=results,
            grid=grid,
            repository=args.push_to_hub,
        )
    except RuntimeError as fault:
        raise SystemExit(f"safetune export: {fault}; nothing was written") from fault
    for name, file in facts["files"].items():
        print(f"{args.out / name}: {file['bytes']} bytes, output differs by {file['max_abs_diff']:.1e}")
    if args.push_to_hub:
        print(push_export(args.out, args.push_to_hub, args.private))


def run_extract(args: argparse.Namespace) -> None:
    """Run `safetune extract`."""
    from safetune.export.extraction import extract_adapter

    lost = extract_adapter(args.run, args.out, args.rank, args.force)
    print(
        f"{args.out}: rank {args.rank} loses {lost['error']:.1%} of the change of the weights and "
        f"{lost['output_error']:.1%} of that of the outputs; most in {lost['worst_layer']} "
        f"({lost['worst_error']:.1%})"
    )


def run_merge_adapters(args: argparse.Namespace) -> None:
    """Run `safetune merge-adapters`."""
    from safetune.export.merging import merge_adapters

    weights = [float(weight) for weight in args.weights.split(",")]
    rank = merge_adapters(
        args.files,
        args.out,
        args.model,
        weights,
        method=args.method,
        density=args.density,
        rank=args.rank,
        seed=args.seed,
        force=args.force,
    )
    print(f"{args.out}: {len(args.files)} adapters as one of rank {rank}; export it with `safetune export`")


def run_verify(args: argparse.Namespace) -> None:
    """Run `safetune verify`; a fault ends with status 2, each with its layer."""
    from safetune.export.verification import verify_file

    found = verify_file(args.file, args.base, args.probe)
    for line in found.checked:
        print(f"right: {line}")
    for line in found.notes:
        print(f"note: {line}")
    if found.faults:
        raise ValueError(f"{args.file} has {len(found.faults)} faults:\n" + "\n".join(found.faults))
    print(f"{args.file}: {found.format}, {found.layers} layers, no fault found")


def run_evaluate(args: argparse.Namespace) -> None:
    """Run `safetune evaluate`, and print a line for each method."""
    from safetune.evaluation.command import measure

    results = measure(
        args.out,
        args.model,
        args.hgr,
        args.adapter,
        args.denoiser,
        args.methods,
        suite=args.suite,
        prompts_file=args.prompts_file,
        columns=args.columns,
        cells=[name for name in args.cells.split(",") if name],
        count=args.prompts or (200 if args.full else 64),
        concepts_file=args.concepts,
        preset=args.preset,
        q16_clip=args.q16_clip,
        judge_weights={name: Path(file) for one in args.judge_weights for name, file in one.items()},
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        images_per_prompt=args.images_per_prompt,
    )
    for name, block in results["methods"].items():
        rates = (f"{cell} {rates['harm_rate']['mean']:.1%}" for cell, rates in block["cells"].items())
        print(f"{name}: harm in {', '.join(rates)}")
    print(f"written to {args.out / 'results.json'}")


def run_recount(args: argparse.Namespace) -> None:
    """Run `safetune recount`, and print a line for each method and cell."""
    from safetune.evaluation.recount import recount

    file, counted = recount(args.folder, args.preset)
    for name, cells in counted.items():
        for cell, found in cells.items():
            print(f"{name}, {cell}: {found['value']:g} ({found['unit']}) of {found['pictures']} pictures")
    print(f"written to {file}")


def run_baseline(args: argparse.Namespace) -> None:
    """Run `safetune baseline`."""
    from safetune.evaluation.baselines.command import train_baseline
    from safetune.precision import fast_device

    facts = train_baseline(
        args.name, args.out, args.model, args.concepts, args.preserve, args.seed, args.steps, fast_device()
    )
    print(f"{args.name}: {facts['seconds']} s, written to {args.out}")


def run_compare(args: argparse.Namespace) -> None:
    """Run `safetune compare`, and print the table."""
    from safetune.evaluation.compare import compare

    print(compare(args.folders, args.out, args.separate))
    if args.out:
        print(f"\nopen {args.out / 'compare.html'}")


def run_results_command(args: argparse.Namespace) -> None:
    """Run `safetune results`."""
    from safetune.results import run_results

    run_results(args.out, args.demo, args.page, args.quick)


def run_attack(args: argparse.Namespace) -> None:
    """Run `safetune attack`, and print a line for each attack."""
    from safetune.evaluation.attacks.command import attack
    from safetune.evaluation.attacks.suite import AttackOptions
    from safetune.evaluation.methods import Method
    from safetune.precision import fast_device

    options = AttackOptions(
        search_steps=args.search_steps,
        inversion_steps=args.inversion_steps,
        finetuning_steps=args.finetuning_steps,
    )
    results = attack(
        args.out,
        args.model,
        Method("attacked", args.adapter, args.denoiser, args.hgr, args.negative_prompt, args.sld),
        names=[name for name in args.attacks.split(",") if name],
        count=args.count,
        options=options,
        device=fast_device(),
    )
    for name, found in results["attacks"].items():
        before = "" if found["pre_attack_rate"] is None else f"{found['pre_attack_rate']:.1%} before, "
        print(
            f"{name}: {before}{found['attack_rate']:.1%} under attack, of {found['count']}; "
            f"{found['steps']} steps, {found['tries']} tries, {found['seconds']:.0f} s"
        )
    print(f"written to {args.out / 'attacks.json'}")


def run_estimate(args: argparse.Namespace) -> None:
    """Run `safetune estimate`."""
    from safetune.config import parse_config
    from safetune.estimation.architectures import find_architecture
    from safetune.estimation.estimate import estimate, with_processes
    from safetune.estimation.report import as_json, as_text
    from safetune.finetuning.config import FinetuneConfig
    from safetune.finetuning.plan import Launch, launch_of_file

    config = parse_config(FinetuneConfig, "safetune estimate", ["--config", str(args.config)])
    launch = with_processes(launch_of_file(args.launch) if args.launch else Launch(), args.gpus)
    found = estimate(config, find_architecture(config.model, args.architecture), launch)
    print(json.dumps(as_json(found), indent=1) if args.json else as_text(found))


def run_tinysd_data(args: argparse.Namespace) -> None:
    """Run `safetune tinysd-data`."""
    from safetune.tinysd.datasets import write_hgr_pairs, write_pool

    count = [args.count] if args.count else []
    if args.kind == "hgr-pairs":
        write_hgr_pairs(args.out, *count)
    else:
        write_pool(args.out, args.out.with_name(args.out.name + "-truth.json"), *count)
    print(f"written to {args.out}")


COMMANDS = {
    "demo": run_demo_command,
    "export": run_export,
    "extract": run_extract,
    "merge-adapters": run_merge_adapters,
    "verify": run_verify,
    "evaluate": run_evaluate,
    "attack": run_attack,
    "baseline": run_baseline,
    "recount": run_recount,
    "compare": run_compare,
    "results": run_results_command,
    "estimate": run_estimate,
    "tinysd-data": run_tinysd_data,
}
