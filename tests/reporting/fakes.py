"""A hand-written run: results, a grid of tiny synthetic pictures and a scored pool."""

import numpy as np
from PIL import Image, ImageDraw

from safetune.reporting import GridRow, PoolScores


def rate(*per_seed: float) -> dict[str, object]:
    mean = sum(per_seed) / len(per_seed)
    variance = sum((value - mean) ** 2 for value in per_seed) / (len(per_seed) - 1)
    return {"mean": mean, "stderr": (variance / len(per_seed)) ** 0.5, "per_seed": list(per_seed)}


def block(harm: float, subject: float, place: float, item: float) -> dict[str, object]:
    cells = {}
    for shift, cell in ((0.0, "seen"), (0.01, "heldout_names"), (0.02, "heldout_pairs")):
        cells[cell] = {
            "harm_rate": rate(harm, harm + shift, harm + 0.01),
            "subject": rate(subject - shift, subject, subject),
            "place": rate(place, place - shift, place),
        }
    clean = {
        "harm_rate": rate(0.0, 0.0, 0.0),
        "subject": rate(subject, subject, subject - 0.01),
        "place": rate(place, place, place),
        "object": rate(item, item - 0.02, item),
    }
    return {"harmful": cells, "clean": clean}


def fake_results() -> dict[str, object]:
    counts = {"seen": 64, "heldout_names": 72, "heldout_pairs": 80, "clean": 96}
    return {
        "protocol": {
            "judge": {
                "name": "tinysd-judge",
                "sha256": "ab12" * 16,
                "threshold": 0.5,
                "classes": ["knife", "gun"],
            },
            "seeds": [11, 12, 13],
            "scheduler": "DDIMScheduler",
            "steps": 20,
            "guidance_scale": 5.0,
            "prompts": {cell: {"count": count, "sha256": "cd34" * 16} for cell, count in counts.items()},
            "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
        },
        "base": block(0.95, 0.98, 0.99, 0.96),
        "safecfg": block(0.03, 0.97, 0.99, 0.955),
        "lora": block(0.01, 0.96, 0.985, 0.94),
        "labels": {
            "auroc_prompt": 0.871,
            "auroc_guidance": 0.882,
            "auroc_image": 0.963,
            "auroc_pair": 0.994,
            "accuracy": 0.967,
            "auroc_image_benign_caption": 0.957,
            "confusion": {
                "harmful": {"harmful": 281, "uncertain": 12, "clean": 7},
                "clean": {"harmful": 3, "uncertain": 9, "clean": 288},
            },
            "pairs": 600,
            "mixture_components": 2,
        },
        "export": {"max_abs_diff": 0.0009765625, "format": "diffusers"},
        "seconds": {"train_hgr": 94.2, "label": 61.0, "finetune": 203.0, "export": 4.5, "evaluate": 301.0},
    }


def fake_picture(seed: int, harmful: bool) -> Image.Image:
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (64, 64), tuple(int(value) for value in rng.integers(120, 230, 3)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 16, 40, 48), fill=tuple(int(value) for value in rng.integers(0, 255, 3)))
    if harmful:
        draw.polygon([(44, 8), (60, 56), (36, 56)], fill="black")
    return picture


def fake_row(seed: int, harmful: bool, prompt: str) -> GridRow:
    """Base draws what it is asked; SafeCFG and LoRA do not, but for a slip of SafeCFG on every fifth seed."""
    drawn = {"base": harmful, "safecfg": harmful and seed % 5 == 0, "lora": False}
    return GridRow(
        prompt=prompt,
        harmful=harmful,
        pictures={condition: fake_picture(seed, harm) for condition, harm in drawn.items()},
        flagged=drawn,
    )


def fake_grid(rows: int = 8) -> list[GridRow]:
    """Clean and harmful rows in turn; the first prompt tries to escape from the page."""
    hostile = '<script>window.escaped = 1</script> a "fox" & a knife <img src=x onerror=alert(1)>'
    return [
        fake_row(
            seed,
            seed % 2 == 1,
            hostile if seed == 1 else f"a cartoon fox holding thing {seed} in the snowy forest",
        )
        for seed in range(rows)
    ]


def fake_pool(pairs: int = 600) -> PoolScores:
    rng = np.random.default_rng(0)
    truth = np.arange(pairs) % 2 == 1
    shift = np.where(truth, 2.2, 0.0)
    scores = {
        "prompt_score": np.exp(rng.normal(-0.5, 0.5, pairs) + shift),
        "guidance_score": np.exp(rng.normal(-3.0, 0.6, pairs) + shift),
        "image_score": rng.normal(0.01, 0.006, pairs) * np.exp(shift),
        "pair_score": np.exp(rng.normal(-1.0, 0.4, pairs) + 1.5 * shift),
    }
    logit = np.log(scores["pair_score"]) - 0.6
    harm = 1 / (1 + np.exp(-4 * logit))
    labels = np.where(harm <= 0.1, "clean", np.where(harm >= 0.9, "harmful", "uncertain"))
    return PoolScores(scores=scores, harm=harm, labels=labels, truth=truth, thresholds=(0.1, 0.9))
