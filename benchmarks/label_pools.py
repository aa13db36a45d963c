"""How right the labeler is: pools of TinySD scenes with 0 to 60% harmful pairs, against their truth.

    python benchmarks/label_pools.py --json label_pools.json

Of a pool's harmful pairs 3 in 7 are harmful in caption and picture, 2 in the picture alone and 2 in the
caption alone: with 35% harmful pairs that is 10% of the pool each. Clean pairs show the same scenes with a
safe object or none. Half of the pictures are rendered, half are drawn by TinySD from the caption of their
scene; those where the judge does not see what the caption says are not used. Names and pairs include the
held-out ones.
The labels take nothing from the judge or the truth.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from safetune.backbone import Backbone, load_backbone
from safetune.evaluation.metrics import HARM_THRESHOLD, harm_probability
from safetune.files import write_json
from safetune.hgr import HGR
from safetune.labeling.finished import read_finished
from safetune.labeling.labeler import Labeler, label_pairs
from safetune.labeling.scoring import ScoreOptions
from safetune.pairs import open_pairs, write_pairs
from safetune.precision import fast_dtype
from safetune.tinysd.datasets import clean_counterpart
from safetune.tinysd.judge import judge_images, load_judge
from safetune.tinysd.world import Scene, render, sample_scene

SEED = 505
HARMFUL, CLEAN = 0, 1
Couples = list[tuple[tuple[Scene, Scene], np.ndarray]]
"""((harmful scene, clean scene), their two pictures (2, H, W, 3) uint8)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, pairs=2000)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.0, 0.01, 0.1, 0.35, 0.6], help="shares of harmful pairs"
    )
    args = parser.parse_args()
    backbone = load_backbone("tinysd", dtype=fast_dtype())
    hgr = HGR.from_pretrained(args.hgr).eval()
    couples = draw_couples(backbone, args.pairs // 2)
    rows = []
    for share in args.shares:
        with tempfile.TemporaryDirectory() as folder:
            pool = Path(folder) / "pool"
            truth = write_pool(pool, couples, share, args.pairs)
            found = measure(backbone, hgr, pool, truth, ScoreOptions(), pool / "labels")
            rows.append({"share": share, **found})
        print({name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    if args.json:
        write_json(args.json, {"pairs": args.pairs, "seed": SEED, "pools": rows})


def add_options(parser: argparse.ArgumentParser, pairs: int) -> None:
    """Options that the labeler's benchmarks share."""
    parser.add_argument(
        "--hgr",
        type=Path,
        default=Path("runs/demo/hgr/hgr"),
        help="TinySD's redirector (the demo's)",
    )
    parser.add_argument("--pairs", type=int, default=pairs, help="pairs of a pool (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file that receives the numbers")


def draw_couples(backbone: Backbone, count: int) -> Couples:
    """Harmful scenes and clean counterparts with their pictures, every second couple's drawn by the model."""
    rng = np.random.default_rng(SEED)
    scenes = []
    for _ in range(count):
        harmful = sample_scene(rng, harmful=True, split="all")
        scenes.append((harmful, clean_counterpart(harmful, rng)))
    pictures = np.stack([[np.asarray(render(scene)) for scene in couple] for couple in scenes])
    drawn = [(number, kind) for number in range(0, count, 2) for kind in (HARMFUL, CLEAN)]
    backbone.pipeline.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(drawn), 64), desc="draw", unit="batch"):
        batch = drawn[start : start + 64]
        output = backbone.pipeline(
            [scenes[number][kind].caption for number, kind in batch],
            num_inference_steps=10,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(2 * number + kind) for number, kind in batch],
            output_type="np",
        )
        for (number, kind), picture in zip(batch, output.images, strict=True):
            pictures[number, kind] = (picture * 255).round()
    judge = load_judge()
    tensor = torch.from_numpy(pictures).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    harm = np.concatenate([harm_probability(judge_images(judge, chunk)) for chunk in tensor.split(256)])
    seen = harm.reshape(count, 2) >= HARM_THRESHOLD
    right = seen[:, HARMFUL] & ~seen[:, CLEAN]
    return [(scenes[number], pictures[number]) for number in np.flatnonzero(right)]


def write_pool(folder: Path, couples: Couples, share: float, count: int, seed: int = SEED) -> pd.DataFrame:
    """A pool with a share of harmful pairs as an image folder; returns its truth, row by row."""
    harmful = round(share * count)
    apart = round(harmful * 2 / 7)
    kinds = (
        [(HARMFUL, HARMFUL)] * (harmful - 2 * apart)
        + [(CLEAN, HARMFUL)] * apart
        + [(HARMFUL, CLEAN)] * apart
        + [(CLEAN, CLEAN)] * (count - harmful)
    )
    rng = np.random.default_rng([seed, harmful])
    order = [couples[place] for place in rng.permutation(len(couples))]
    rows = [(*order[number % len(order)], *kinds[number]) for number in range(count)]
    rows = [rows[place] for place in rng.permutation(count)]
    captions = ({"text": scenes[caption].caption} for scenes, _, caption, _ in rows)
    write_pairs(folder, (Image.fromarray(pictures[shown]) for _, pictures, _, shown in rows), captions)
    return pd.DataFrame(
        {
            "caption_harmful": [caption == HARMFUL for _, _, caption, _ in rows],
            "image_harmful": [shown == HARMFUL for _, _, _, shown in rows],
            "category": [scenes[HARMFUL].category for scenes, *_ in rows],
        }
    )


def measure(
    backbone: Backbone, hgr: HGR, pool: Path, truth: pd.DataFrame, scoring: ScoreOptions, folder: Path
) -> dict[str, float]:
    """Label a pool into `folder` and compare with its truth; AUROCs are missing where one kind is."""
    summary = label_pairs(Labeler(backbone, hgr, scoring=scoring), open_pairs(pool), folder)
    labels, _ = read_finished(folder)
    caption, image = truth.caption_harmful.to_numpy(), truth.image_harmful.to_numpy()
    harmful, hidden = caption | image, ~caption & image
    wanted = np.where(harmful, "harmful", "clean")
    found = {
        "accuracy": float((labels.label == wanted).mean()),
        "labelled_harmful": float((labels.label == "harmful").mean()),
        "one_kind": float(summary["one_kind"]),
        "evaluations_per_pair": summary["evaluations"] / len(labels),
    }
    if harmful.any():
        benign = ~caption
        found |= {
            "auroc_pair": float(roc_auc_score(harmful, labels.pair_score)),
            "auroc_image_benign_caption": float(roc_auc_score(hidden[benign], labels.image_score[benign])),
            "category_right": float((labels.category == truth.category)[harmful].mean()),
        }
    return found


if __name__ == "__main__":
    main()
