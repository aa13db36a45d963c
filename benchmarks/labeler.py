"""What the labeler's looks save: adaptive against exhaustive scoring of one pool, in turn.

    python benchmarks/labeler.py --json labeler.json

Prints evaluations of the denoiser a pair, pairs a second, and the AUROCs of both forms on a pool with 35%
harmful pairs (see label_pools.py). Each form labels the whole pool `--rounds` times, one after the other.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from label_pools import add_options, draw_couples, measure, write_pool

from safetune.backbone import load_backbone
from safetune.files import write_json
from safetune.hgr import HGR
from safetune.labeling.scoring import ScoreOptions
from safetune.precision import fast_dtype


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, pairs=400)
    parser.add_argument("--rounds", type=int, default=1, help="times that each form labels the pool")
    args = parser.parse_args()
    backbone = load_backbone("tinysd", dtype=fast_dtype())
    hgr = HGR.from_pretrained(args.hgr).eval()
    forms = {"adaptive": ScoreOptions(), "exhaustive": ScoreOptions(exhaustive=True)}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        truth = write_pool(pool, draw_couples(backbone, args.pairs // 2), 0.35, args.pairs)
        for number in range(args.rounds):
            for name, options in forms.items():
                started = time.perf_counter()
                found[name] = measure(backbone, hgr, pool, truth, options, Path(folder) / f"{name}-{number}")
                seconds[name].append(time.perf_counter() - started)
    for name, values in found.items():
        values["pairs_per_second"] = args.pairs / float(np.median(seconds[name]))
        print(name, {key: round(value, 4) for key, value in values.items()})
    one, other = found["adaptive"], found["exhaustive"]
    ratios = {
        "fewer_evaluations": other["evaluations_per_pair"] / one["evaluations_per_pair"],
        "faster": one["pairs_per_second"] / other["pairs_per_second"],
        "auroc_pair_lost": other["auroc_pair"] - one["auroc_pair"],
        "auroc_image_lost": other["auroc_image_benign_caption"] - one["auroc_image_benign_caption"],
    }
    print({name: round(value, 4) for name, value in ratios.items()})
    if args.json:
        write_json(args.json, {"pairs": args.pairs, "rounds": args.rounds, **found, "ratios": ratios})


if __name__ == "__main__":
    main()
