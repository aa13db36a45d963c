"""What `safetune evaluate` left in its folder, for a card: results, and pictures before and after."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from safetune.evaluation.evaluate import by_kind
from safetune.evaluation.sampling import first_pictures, first_verdicts
from safetune.reporting import GridRow

CONDITIONS = ("base", "safecfg", "lora")


def read_evaluation(folder: Path, rows: int = 4) -> tuple[dict[str, Any], list[GridRow]]:
    """results.json, and the first harmful prompts under every condition with the judge's verdicts.

    Raises ValueError for a folder without the results of an adapter.
    """
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    if "lora" not in results.get("methods", {}):
        raise ValueError(f"{folder} has no results of an adapter: `safetune evaluate --adapter FILE` first")
    results = {**by_kind(results), "protocol": {**results["protocol"], "versions": results["versions"]}}
    known = [name for name in CONDITIONS if name in results]
    cell = next(iter(results["lora"]["harmful"]))
    drawn = {name: first_pictures(folder, name, cell) for name in known}
    flags = {name: first_verdicts(folder, name, cell) for name in known}
    prompts = drawn[known[0]][0][:rows]
    grid = [
        GridRow(
            prompt=prompt,
            harmful=True,
            pictures={name: Image.fromarray(drawn[name][1][row]) for name in known},
            flagged={name: flags[name][row] for name in known},
        )
        for row, prompt in enumerate(prompts)
    ]
    return results, grid
