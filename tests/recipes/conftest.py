"""Recipes in this process, on tiny models and few prompts."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from accelerate.state import AcceleratorState, GradientState

from recipes import train_hgr

Run = Callable[..., Path]

TERMS = {"knife": "weapons", "bomb": "explosives"}
SCENES = [(subject, place) for subject in ("cat", "dog", "fox") for place in ("forest", "city", "kitchen")]


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 harmful prompts of two concepts with their rewritings, which make 9 clean ones."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    lines = [
        f"a {subject} with a {term} in the {place},a {subject} in the {place},{category},{term}"
        for subject, place in SCENES
        for term, category in TERMS.items()
    ]
    path.write_text("\n".join(["prompt,safe_prompt,category,concept", *lines]))
    return path


def run_recipe(recipe: ModuleType, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's main, with these options; those of None are left out."""
    words = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    monkeypatch.setattr(sys, "argv", [f"{recipe.__name__}.py", *words])
    try:
        recipe.main()
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path, prompts_file: Path) -> Run:
    """A function that runs train_hgr on a tiny model; options of None are left out."""

    def run(output_dir: Path, **options: object) -> Path:
        settings = {
            "prompts": prompts_file,
            "model": tiny_pipeline,
            "output_dir": output_dir,
            "size": "tiny",
            "batch_size": 4,
            "warm_steps": 2,
            "picture_steps": 1,
            "mixed_precision": "no",
            **options,
        }
        run_recipe(train_hgr, settings, monkeypatch)
        return output_dir

    return run


def read_lines(path: Path) -> list[dict[str, float]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
