"""Runs of the fine-tuning recipe in this process and with two, on one tiny pool."""

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import finetune
from tests.invariants.launched import launch
from tests.recipes.conftest import run_recipe
from tests.recipes.tuning import METHODS, build_redirector, settings_of, write_labelled_pool

Runs = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def as_many_threads_as_each_of_two_processes(one_thread: None) -> None:
    """Sums of other threads round otherwise, which six steps of AdamW may make more than 1e-5."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path) -> dict[str, object]:
    """Options of 6 steps, but for METHODS and output_dir."""
    folder = tmp_path_factory.mktemp("pool")
    write_labelled_pool(folder / "pool")
    build_redirector(tiny_pipeline).save_pretrained(folder / "hgr")
    options = settings_of(folder / "pool", folder / "hgr", tiny_pipeline)
    return {**options, "steps": 6, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, object]) -> Runs:
    """The run of a method in this process, made once."""
    folder = tmp_path_factory.mktemp("alone")

    def of(method: str) -> Path:
        run = folder / method
        if not run.exists():
            with pytest.MonkeyPatch.context() as patched:
                run_recipe(finetune, {**settings, **METHODS[method], "output_dir": run}, patched)
        return run

    return of


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, object]) -> Runs:
    """The run of a mode and a method with two processes, never cut, launched once."""
    folder = tmp_path_factory.mktemp("together")

    def of(mode: str, method: str) -> Path:
        run = folder / f"{mode}-{method}"
        if not run.exists():
            launch(mode, {**settings, **METHODS[method], "batch_size": 2, "output_dir": run})
        return run

    return of
