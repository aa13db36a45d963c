r"""Draw the pictures of a prompt file with any diffusers pipeline; run again, it goes on where it stopped.

    safetune generate prompts.csv --model tinysd --out data/pool

Two processes that share the work, on the CPU:

    ACCELERATE_USE_CPU=true accelerate launch --config_file launch/cpu_ddp.yaml \
        data_tools/generate.py prompts.csv --model tinysd --out data/pool

PROMPTS is a .txt (one prompt a line), .csv, .jsonl or .parquet file. The output is an image folder with
metadata.jsonl (file_name, text, seed, model, and the file's other columns), which `safetune label` and
datasets.load_dataset("imagefolder") read. A picture's seed comes from --seed, its prompt and its copy number
alone; a column `seed` of the file takes its place. Prompts that name an age in a sexual context are dropped.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from safetune.data.drawing import (
    call_options,
    draw_pictures,
    load_adapter,
    load_pipeline,
    pipeline_fingerprint,
)
from safetune.data.jobs import Job, chunks, read_jobs
from safetune.files import check_settings, fingerprint_of, replace_folder, write_json, write_text
from safetune.launching import check_world_size
from safetune.precision import resolve_dtype
from safetune.prompts.layouts import LAYOUTS
from safetune.runs import versions

logger = logging.getLogger("generate")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetune generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path, help=".txt, .csv, .jsonl or .parquet file of prompts")
    parser.add_argument("--out", type=Path, required=True, help="image folder to write, or to go on with")
    parser.add_argument(
        "--model", default="tinysd", help="pipeline: tinysd, folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--adapter", type=Path, help="LoRA in diffusers' form, a .safetensors file")
    parser.add_argument(
        "--prompt-column", default="prompt", help="column of the prompts (default: %(default)s)"
    )
    parser.add_argument(
        "--layout", choices=list(LAYOUTS), default="plain", help="columns of known prompt sets, such as I2P's"
    )
    parser.add_argument(
        "--images-per-prompt", type=int, default=1, help="pictures of each prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="where all seeds come from (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the pipeline's)")
    parser.add_argument("--guidance-scale", type=float, help="guidance scale w (default: the pipeline's)")
    parser.add_argument("--height", type=int, help="pixels (default: the pipeline's)")
    parser.add_argument("--width", type=int, help="pixels (default: the pipeline's)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="precision of the model (default: what the hardware is fast in)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="pictures in one call (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=64,
        help="pictures written at once: what an interrupted run may lose (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        generate(args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune generate: {mistake}", file=sys.stderr)
        return 2
    return 0


def generate(args: argparse.Namespace) -> None:
    for name in ("images_per_prompt", "batch_size", "shard_size", "steps", "height", "width"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    level = logging.INFO if state.is_main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    check_world_size(state)

    jobs = read_jobs(args.prompts, args.prompt_column, args.layout, args.seed, args.images_per_prompt)
    dtype = resolve_dtype(args.dtype, state.device)
    pipeline = load_pipeline(args.model, state.device, dtype)
    options = picture_options(args, pipeline)
    fingerprint = pipeline_fingerprint(pipeline)
    adapter = None if args.adapter is None else load_adapter(pipeline, args.adapter)
    settings = {
        "model": args.model,
        "model_fingerprint": fingerprint,
        "adapter_sha256": adapter,
        "dtype": str(dtype).removeprefix("torch."),
        "options": options,
        "jobs": fingerprint_of([job.text, job.seed, job.columns] for job in jobs),
        "pictures": len(jobs),
        "shard_size": args.shard_size,
    }
    check_settings(args.out / "generate.json", settings)
    state.wait_for_everyone()
    shards = chunks(jobs, args.shard_size)
    parts = {args.out / f"part-{number:05d}": shard for number, shard in enumerate(shards)}
    there = sum(len(part) for folder, part in parts.items() if folder.is_dir())
    if state.is_main_process:
        write_json(args.out / "generate.json", {**settings, "versions": versions()})
    state.wait_for_everyone()

    mine = list(parts.items())[state.process_index :: state.num_processes]
    logger.info(
        "generate: %d pictures of %s in %s on %s, %d process(es), shards of %d, into %s",
        len(jobs),
        args.model,
        settings["dtype"],
        state.device,
        state.num_processes,
        args.shard_size,
        args.out,
    )
    with tqdm(
        total=sum(len(part) for _, part in mine),
        desc="generate",
        unit="picture",
        disable=not state.is_main_process,
    ) as bar:
        for folder, part in mine:
            if not folder.is_dir():
                write_part(pipeline, folder, part, options, args.batch_size, args.model)
            bar.update(len(part))

    state.wait_for_everyone()
    if state.is_main_process:
        join(args.out, list(parts))
        print(
            f"generate: {len(jobs)} pictures in {args.out}, {len(jobs) - there} of them drawn now; "
            f"next: safetune label {args.out} --hgr DIR"
        )
    state.wait_for_everyone()


def picture_options(args: argparse.Namespace, pipeline: DiffusionPipeline) -> dict[str, int | float]:
    """What was asked for, by the names of the pipeline's call. ValueError for what it does not take."""
    given = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "height": args.height,
        "width": args.width,
    }
    options = {name: value for name, value in given.items() if value is not None}
    unknown = set(options) - call_options(pipeline)
    if unknown:
        raise ValueError(
            f"{type(pipeline).__name__} takes no {', '.join(sorted(unknown))}: leave that option out"
        )
    return options


def write_part(
    pipeline: DiffusionPipeline,
    folder: Path,
    jobs: Sequence[Job],
    options: Mapping[str, int | float],
    batch_size: int,
    model: str,
) -> None:
    """Draw a shard and move it into place whole: its pictures and their lines of metadata."""
    with replace_folder(folder) as temporary:
        lines = []
        for batch in chunks(jobs, batch_size):
            pictures = draw_pictures(
                pipeline, [job.text for job in batch], [job.seed for job in batch], options
            )
            for job, picture in zip(batch, pictures, strict=True):
                name = f"{job.number:06d}.png"
                picture.save(temporary / name)
                row = {"file_name": f"{folder.name}/{name}", "text": job.text, "seed": job.seed}
                lines.append(json.dumps({**row, "model": model, **job.columns}) + "\n")
        (temporary / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def join(out: Path, parts: Sequence[Path]) -> None:
    """Write metadata.jsonl from all shards; remove what killed runs left of theirs."""
    write_text(out / "metadata.jsonl", "".join((part / "rows.jsonl").read_text("utf-8") for part in parts))
    for stale in out.glob(".part-*.tmp"):
        shutil.rmtree(stale)


if __name__ == "__main__":
    raise SystemExit(main())
