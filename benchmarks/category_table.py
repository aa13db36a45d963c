"""Whose prototype helps whom: TinySD's harm rate by the prompt's category and the category that is applied.

    python benchmarks/category_table.py --json categories.json

Each prompt is guided away from a stored prototype instead of the redirector's own output: of the applied
category, the concept nearest to the prompt. The diagonal should be the lowest of its row. The pick is right
when the nearest prototype of all belongs to the prompt's category. Prompts have held-out names.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from safetune.backbone import load_backbone
from safetune.backbone.loading import TINYSD_DIR
from safetune.conditioning import Conditioning, shift
from safetune.evaluation.metrics import picture_outcomes
from safetune.files import write_json
from safetune.hgr import HGR
from safetune.labeling.scores import prototype_projections
from safetune.precision import fast_dtype
from safetune.tinysd.judge import judge_images, load_judge
from safetune.tinysd.vocabulary import CATEGORIES
from safetune.tinysd.world import Scene, sample_scene

SEED = 404


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hgr",
        type=Path,
        default=Path("runs/demo/hgr/hgr"),
        help="TinySD's trained redirector (default: the demo's)",
    )
    parser.add_argument("--prompts", type=int, default=32, help="prompts of each category")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--json", type=Path, help="file that receives the table")
    args = parser.parse_args()
    if not args.hgr.is_dir():
        parser.error(f"--hgr {args.hgr}: no such folder; `make demo` trains the redirector")
    hgr = HGR.from_pretrained(args.hgr).eval()
    scenes = {category: category_scenes(category, args.prompts) for category in CATEGORIES}
    backbone = load_backbone("tinysd")
    prompts = {
        category: backbone.encode_prompts([scene.caption for scene in members])
        for category, members in scenes.items()
    }
    results = {
        "prompts_per_category": args.prompts,
        "steps": args.steps,
        "picked_right": picked_right(hgr, prompts),
        "harm_rate": harm_table(hgr, scenes, prompts, backbone.null(), args.steps),
    }
    print_table(results["harm_rate"])
    print(f"picked right: {results['picked_right']:.1%} of {len(CATEGORIES) * args.prompts} prompts")
    if args.json:
        write_json(args.json, results)


def category_scenes(category: str, count: int) -> list[Scene]:
    """Harmful scenes of a category under held-out names."""
    rng = np.random.default_rng([SEED, CATEGORIES.index(category)])
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, harmful=True, split="heldout_names")
        if scene.category == category:
            scenes.append(scene)
    return scenes


def picked_right(hgr: HGR, prompts: dict[str, Conditioning]) -> float:
    """Share of prompts whose nearest prototype is of their own category."""
    right = [
        hgr.categories[place] == category
        for category, members in prompts.items()
        for place in prototype_projections(hgr, hgr.delta(members)).argmax(1).tolist()
    ]
    return float(np.mean(right))


def harm_table(
    hgr: HGR,
    scenes: dict[str, list[Scene]],
    prompts: dict[str, Conditioning],
    null: Conditioning,
    steps: int,
) -> dict[str, dict[str, float]]:
    """Harm rate by the prompt's category and then by what is applied; "none" is plain guidance."""
    pipeline = StableDiffusionPipeline.from_pretrained(TINYSD_DIR, dtype=fast_dtype("cpu"))
    pipeline.set_progress_bar_config(disable=True)
    judge = load_judge()
    table: dict[str, dict[str, float]] = {}
    for category, members in scenes.items():
        captions = [scene.caption for scene in members]
        near = prototype_projections(hgr, hgr.delta(prompts[category]))
        table[category] = {}
        for applied in ("none", *CATEGORIES):
            negative = null.expand(len(captions))
            if applied != "none":
                negative = shift(negative, nearest_prototypes(hgr, near, applied))
            pictures = pipeline(
                captions,
                negative_prompt_embeds=negative.embeds.to(pipeline.dtype),
                num_inference_steps=steps,
                guidance_scale=5.0,
                generator=[torch.Generator().manual_seed(SEED + row) for row in range(len(captions))],
                output_type="pt",
            ).images
            outcomes = picture_outcomes(judge_images(judge, pictures.float() * 2 - 1), members)
            table[category][applied] = float(outcomes["harm_rate"].mean())
    return table


def nearest_prototypes(hgr: HGR, near: torch.Tensor, category: str) -> Conditioning:
    """For each prompt the prototype of a category's concept that is nearest to it."""
    members = torch.tensor([place for place, name in enumerate(hgr.categories) if name == category])
    return hgr.prototype_delta().select(members[near[:, members].argmax(1)])


def print_table(table: dict[str, dict[str, float]]) -> None:
    columns: Sequence[str] = ("none", *CATEGORIES)
    print("| prompt's category | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for category, rates in table.items():
        print(f"| {category} | " + " | ".join(f"{rates[name]:.0%}" for name in columns) + " |")


if __name__ == "__main__":
    main()
