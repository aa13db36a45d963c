"""Encode the pictures and prompts of a data set once, and keep latents and embeddings as safetensors.

    safetune cache data/pool --model tinysd --out data/pool-cache

An encoding is named by the SHA-256 of the picture's bytes (or the prompt) and of all that it hangs on:
weights, resolution, precision. What is there under its name is not encoded again, whichever data set it came
from: add pictures to DATA and run again, or give several data sets one --out, one after the other.
pairs.parquet says which encodings the pairs of the last run have; read them in Python with
safetune.data.encodings.read_encoded(OUT).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from safetune.backbone import load_backbone
from safetune.data.encodings import PAIRS_FILE, Encoder, TensorStore, encoder_of, prompt_tensors
from safetune.files import write_json, write_parquet
from safetune.latents import latent_factor, native_resolution
from safetune.pairs import Limits, Record, Rejection, open_pairs, read_pair, to_tensor
from safetune.pairs.pictures import PictureError
from safetune.pairs.reading import open_image
from safetune.precision import fast_device, resolve_dtype
from safetune.runs import versions

LIMITS = Limits()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safetune cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="pairs: image folder with metadata.jsonl, parquet, tars, or hub name")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encodings")
    parser.add_argument(
        "--model", default="tinysd", help="base model: tinysd, folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--text-column", default="text", help="column of the captions (default: %(default)s)")
    parser.add_argument(
        "--resolution", type=int, help="pixels a side (default: what the model was trained for)"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="precision of the model (default: what the hardware is fast in)",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=64,
        help="pairs encoded at a time: what an interrupted run may lose (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        cache(args)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"safetune cache: {mistake}", file=sys.stderr)
        return 2
    return 0


def cache(args: argparse.Namespace) -> None:
    if args.shard_size < 1:
        raise ValueError(f"--shard-size {args.shard_size}: give 1 or more")
    source = open_pairs(args.data, text_column=args.text_column)
    device = fast_device()
    dtype = resolve_dtype(args.dtype, device)
    backbone = load_backbone(args.model, device, dtype)
    resolution = native_resolution(backbone) if args.resolution is None else args.resolution
    if resolution < 1 or resolution % latent_factor(backbone):
        raise ValueError(
            f"--resolution {resolution}: give a multiple of {latent_factor(backbone)}, as {args.model} needs"
        )
    encoder = encoder_of(backbone, resolution)
    latents, prompts = TensorStore(args.out, "latents"), TensorStore(args.out, "prompts")

    good: list[Encodable] = []
    rejected: Counter[str] = Counter()
    encoded: Counter[str] = Counter()
    records = iter(source)
    with tqdm(total=source.length, desc="cache", unit="pair") as bar:
        while chunk := list(islice(records, args.shard_size)):
            found = [read_record(record, encoder, latents, resolution) for record in chunk]
            rejected.update(each.reason for each in found if isinstance(each, Rejection))
            pairs = [each for each in found if isinstance(each, Encodable)]
            pixels = {pair.picture: pair.pixels for pair in pairs if pair.pixels is not None}
            texts = {pair.prompt: pair.text for pair in pairs if f"{pair.prompt}.embeds" not in prompts}
            if pixels:
                made = backbone.encode_images(torch.stack(list(pixels.values())))
                latents.add(dict(zip(pixels, made, strict=True)))
            if texts:
                prompts.add(prompt_tensors(texts, backbone.encode_prompts(list(texts.values()))))
            encoded.update(pictures=len(pixels), prompts=len(texts))
            good += [replace(pair, pixels=None) for pair in pairs]
            bar.update(len(chunk))
    if not good:
        raise ValueError(f"{args.data}: no pair can be read: {dict(rejected)}")

    columns = ("key", "text", "picture", "prompt")
    frame = pd.DataFrame({name: [getattr(pair, name) for pair in good] for name in columns})
    write_parquet(frame, args.out / PAIRS_FILE)
    facts = {
        "data": args.data,
        "data_fingerprint": source.fingerprint,
        "model": args.model,
        "base_fingerprint": backbone.fingerprint,
        "resolution": resolution,
        "dtype": str(dtype).removeprefix("torch."),
        "pairs": len(good),
        "rejected": dict(rejected),
        "encoded_now": dict(encoded),
        "versions": versions(),
    }
    write_json(args.out / "cache.json", facts)
    print(
        f"cache: {len(good)} pairs in {args.out}; encoded now: {encoded['pictures']} pictures and "
        f"{encoded['prompts']} prompts; {rejected.total()} rows cannot be used"
    )


@dataclass(frozen=True)
class Encodable:
    """A pair with the names of its encodings."""

    key: str
    text: str
    picture: str
    prompt: str
    pixels: torch.Tensor | None
    """The picture (3, size, size), None where its latents are there."""


def read_record(
    record: Record, encoder: Encoder, latents: TensorStore, resolution: int
) -> Encodable | Rejection:
    """A row as it can be encoded, or why it cannot; a picture whose latents are there is not decoded."""
    if record.defect:
        return Rejection(record.row, record.key, record.defect)
    try:
        with open_image(record.image, LIMITS) as file:
            content = file.read()
    except PictureError as mistake:
        return Rejection(record.row, record.key, str(mistake))
    name = encoder.latent_name(content)
    pair = read_pair(replace(record, image=content), "prompts" if name in latents else "pairs", LIMITS)
    if isinstance(pair, Rejection):
        return pair
    pixels = None if pair.picture is None else to_tensor(pair.picture, resolution)
    return Encodable(pair.key, pair.text, name, encoder.prompt_name(pair.text), pixels)


if __name__ == "__main__":
    raise SystemExit(main())
