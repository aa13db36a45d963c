"""The model card that travels with an export: README.md with the hub's front matter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from safetune.backbone.loading import resolve_model
from safetune.export.formats import LORA_FORMATS
from safetune.export.run import FinishedRun
from safetune.files import write_text
from safetune.reporting import GridRow, before_after_picture

TEMPLATE = Path(__file__).parent / "card.md.j2"
GRID_FILE = "before_after.png"
KINDS = {"lora": "A LoRA", "dora": "A DoRA", "full": "A fine-tune of all weights"}
CELLS = {"seen": "seen prompts", "heldout_names": "held-out names", "heldout_pairs": "held-out pairs"}
CONDITIONS = {"base": "base, plain CFG", "safecfg": "base, SafeCFG", "lora": "this model, plain CFG"}
SETTINGS = "method rank alpha targets steps batch_size lr eta guidance_scale seed".split()
MERGED = ("extracted", "combined")
"""What run.json says where the weights were not trained but made of others."""


def write_card(
    folder: Path,
    title: str,
    run: FinishedRun,
    facts: dict[str, Any],
    license_name: str,
    results: dict[str, Any] | None = None,
    grid: Sequence[GridRow] = (),
    repository: str = "FOLDER",
) -> None:
    """Write README.md, and the grid beside it; pictures that the judge flags are blurred in it.

    `facts` is export.json's content, `results` results.json's, `repository` what a user types to load it.
    """
    if grid:
        before_after_picture(grid, folder / GRID_FILE)
    settings = {name: run.config[name] for name in SETTINGS if name in run.config}
    settings |= {name: one_line(run.facts[name]) for name in (*MERGED, "versions") if name in run.facts}
    card = ModelCard.from_template(
        card_data(title, run, facts, license_name, results),
        template_path=str(TEMPLATE),
        title=title,
        kind=KINDS[run.method],
        config=run.config,
        facts=facts,
        grid=GRID_FILE if grid else "",
        repository=repository,
        settings=settings,
        **tables(results),
    )
    write_text(folder / "README.md", str(card))


def card_data(
    title: str, run: FinishedRun, facts: dict[str, Any], license_name: str, results: dict[str, Any] | None
) -> ModelCardData:
    """Front matter; model-index holds the rates of this model where they were measured."""
    adapter = any(file["format"] in LORA_FORMATS for file in facts["files"].values())
    base = hub_name(str(run.config["model"]))
    return ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", *["lora"] * adapter, "safetune", "safecfg", "unlearning"],
        license=license_name,
        model_name=title,
        eval_results=None if results is None else evaluation(results),
    )


def hub_name(model: str) -> str | None:
    """A model's name on the hub; None for a folder, a file and tinysd, which the hub's validation refuses."""
    try:
        validate_repo_id(model)
    except HFValidationError:
        return None
    return None if Path(resolve_model(model)).exists() else model


def evaluation(results: dict[str, Any]) -> list[EvalResult]:
    """Entries of model-index: every rate of this model in percent, with the judge and the guidance scale."""
    protocol, model = results["protocol"], results["lora"]
    blocks = {CELLS.get(cell, cell): block for cell, block in model["harmful"].items()}
    blocks["clean prompts"] = model["clean"]
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="safetune-suite",
            dataset_name=dataset,
            dataset_config=dataset,
            metric_type=name,
            metric_name=f"{name}, %",
            metric_value=round(100 * rate["mean"], 2),
            metric_args={"judge": protocol["judge"]["name"], "guidance_scale": protocol["guidance_scale"]},
        )
        for dataset, block in blocks.items()
        for name, rate in block.items()
    ]


def tables(results: dict[str, Any] | None) -> dict[str, Any]:
    """Rows of the card's tables: harm by cell, what stays right on clean prompts, and the protocol."""
    if results is None:
        return {"results": None}
    known = [name for name in CONDITIONS if name in results]
    cells = list(results[known[0]]["harmful"])
    kept = [name for name in results[known[0]]["clean"] if name != "harm_rate"]
    harm_rows, clean_rows = [], []
    for name in known:
        blocks = [results[name]["harmful"][cell] for cell in cells] + [results[name]["clean"]]
        harm_rows.append([CONDITIONS[name], *(percent(block["harm_rate"]) for block in blocks)])
        clean_rows.append([CONDITIONS[name], *(percent(results[name]["clean"][key]) for key in kept)])
    return {
        "results": results,
        "cells": [CELLS.get(cell, cell) for cell in cells],
        "kept": kept,
        "harm_rows": harm_rows,
        "clean_rows": clean_rows,
        "protocol": {name: one_line(value) for name, value in results["protocol"].items()},
    }


def percent(rate: dict[str, Any]) -> str:
    """A rate with its standard error, in percent."""
    error = "" if rate["stderr"] is None else f" ± {100 * rate['stderr']:.1f}"
    return f"{100 * rate['mean']:.1f}{error}"


def one_line(value: object) -> str:
    """A value of JSON as text."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {one_line(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(one_line(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
