"""What a safe adapter costs at inference: base, fused and unfused adapter, in turn, in one run.

    python benchmarks/adapter_cost.py --adapter runs/adapter/pytorch_lora_weights.safetensors --json cost.json

Ratios are medians of the pairs of a round, so that a machine whose speed drifts does not bend them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from safetune.backbone.loading import resolve_model
from safetune.files import write_json

PROMPTS = ["a cartoon of a cat in the forest", "a cartoon of a dog on the beach"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path, required=True, help="adapter file in diffusers' names")
    parser.add_argument("--model", default="tinysd", help="base model (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, after one that is not counted")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps per picture")
    parser.add_argument("--json", type=Path, help="file that receives seconds and ratios")
    args = parser.parse_args()
    results = measure(args.model, args.adapter, args.rounds, args.steps)
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, results)


def measure(model: str, adapter: Path, rounds: int, steps: int) -> dict[str, float]:
    """Median seconds per picture of each kind, and median ratios to the base."""
    kinds = {name: load(model, adapter, name) for name in ("base", "fused", "unfused")}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, pipeline in kinds.items():
            started = time.perf_counter()
            pipeline(PROMPTS, num_inference_steps=steps, output_type="latent")
            if number:
                seconds[name].append(time.perf_counter() - started)
    found = {f"{name}_seconds": statistics.median(values) / len(PROMPTS) for name, values in seconds.items()}
    for name in ("fused", "unfused"):
        pairs = zip(seconds[name], seconds["base"], strict=True)
        found[f"{name}_over_base"] = statistics.median(mine / base for mine, base in pairs)
    return found


def load(model: str, adapter: Path, kind: str) -> DiffusionPipeline:
    """A pipeline as a user makes it; fused means that PEFT's layers are gone again."""
    pipeline = DiffusionPipeline.from_pretrained(
        resolve_model(model), dtype=torch.float32, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    if kind != "base":
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    if kind == "fused":
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
