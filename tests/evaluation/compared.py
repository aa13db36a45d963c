"""Folders of results.json, as `safetune evaluate` leaves them, for tests of what reads them."""

import copy
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SEEDS = (0, 1, 2)
KINDS = {
    "seen": "harmful",
    "heldout_names": "harmful",
    "heldout_pairs": "harmful",
    "paraphrases": "harmful",
    "clean": "clean",
}


def rate(mean: float, error: float = 0.02, count: int = 192) -> dict[str, Any]:
    """A rate whose interval reaches `error` to both sides, and whose standard error is half of that."""
    return {
        "mean": mean,
        "stderr": error / 2,
        "low": max(0.0, mean - error),
        "high": min(1.0, mean + error),
        "per_seed": [max(0.0, mean - error / 2), mean, min(1.0, mean + error / 2)],
        "count": count,
    }


def build_method(
    harm: float, kind: str = "adapter", objects: float = 0.9, attacked: float | None = None
) -> dict[str, Any]:
    """A method with this harm rate on held-out names, a little less and more elsewhere."""
    cells: dict[str, Any] = {
        cell: {"harm_rate": rate(harm + place), "subject": rate(0.93), "place": rate(0.97)}
        for cell, place in zip(KINDS, (0.001, 0, 0.01, 0.02), strict=False)
    }
    cells["clean"] = {
        "harm_rate": rate(0.01, 0.01),
        "subject": rate(0.95),
        "place": rate(0.98),
        "object": rate(objects),
    }
    attacks = {
        "search-unlearndiffatk": {
            "attack": "search-unlearndiffatk",
            "attack_rate": attacked,
            "pre_attack_rate": harm,
            "count": 32,
            "steps": 100,
            "tries": 5,
            "seconds": 61.0,
            "seed": 0,
            "details": {},
        }
    }
    return {
        "facts": {
            "kind": kind,
            "weights_sha256": "ab12" * 16,
            "adapter_sha256": "cd34" * 16 if kind == "adapter" else None,
            "hgr_sha256": None,
        },
        "cells": cells,
        "categories": {"gore": rate(harm / 2, 0.005), "weapons": rate(harm, 0.03)},
        "utility": {
            "frechet": {"value": 3.125, "count": 192, "reference_sha256": "ef56" * 16},
            "drift": {"value": 0.0105, "count": 192, "reference_sha256": "0a1b" * 16},
        },
        **({} if attacked is None else {"attacks": attacks}),
    }


def build_results(methods: dict[str, dict[str, Any]], **protocol: Any) -> dict[str, Any]:
    """The content of results.json; further keywords replace parts of the protocol."""
    return {
        "schema": "safetune.results/2",
        "methods": methods,
        "cell_kinds": dict(KINDS),
        "protocol": {
            "model": "tinysd",
            "judge": {"name": "tinysd-judge", "sha256": "7788" * 16, "threshold": 0.5},
            "prompts": {cell: {"count": 64, "sha256": f"{row}9" * 32} for row, cell in enumerate(KINDS)},
            "seeds": list(SEEDS),
            "steps": 10,
            "guidance_scale": 5.0,
            "scheduler": {"_class_name": "DDIMScheduler", "beta_start": 0.00085},
            "counting_unit": "picture",
            **protocol,
        },
        "attack_protocol": {"options": {"search_steps": 100}, "denoiser_sha256": "differs"},
        "versions": {"torch": "2.13.0", "python": "3.12"},
    }


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def first_results(**protocol: Any) -> dict[str, Any]:
    """Base, SafeCFG and LoRA."""
    methods = {
        "base": build_method(0.95, "base", 0.93),
        "safecfg": build_method(0.06, "hgr", 0.925, attacked=0.625),
        "lora": build_method(0.05, "adapter", 0.9, attacked=0.5),
    }
    return build_results(copy.deepcopy(methods), **protocol)


def second_results(**protocol: Any) -> dict[str, Any]:
    """Base and a baseline that beats both of the first results."""
    methods = {"base": build_method(0.95, "base", 0.93), "esd": build_method(0.02, "denoiser", 0.935)}
    return build_results(copy.deepcopy(methods), **protocol)


def add_grids(folder: Path, results: dict[str, Any]) -> None:
    """A picture of a harmful and of a clean cell for every method."""
    for number, (name, method) in enumerate(results["methods"].items()):
        method["grid"] = [f"{name}/seen.png", f"{name}/clean.png"]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for kind, colour in (("seen", "firebrick"), ("clean", "seagreen")):
            picture = Image.new("RGB", (260, 260), "white")
            draw = ImageDraw.Draw(picture)
            for place in range(16):
                left, top = place % 4 * 64 + 4, place // 4 * 64 + 4
                draw.ellipse((left + number * 4, top, left + 52, top + 52), fill=colour)
            picture.save(folder / name / f"{kind}.png")
