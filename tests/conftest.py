"""Shared by all tests: no hub, no display, and a reason for every skip."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

LONGEST_FILES = ("test_demo.py", "test_sampling.py", "test_evaluate.py")
"""They run first, so that no process of `make test` is left with one of them at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take more than ten seconds too")
    parser.addoption("--large", action="store_true", help="run the tests on models of full size too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "takes more than ten seconds; give --slow"
    if not config.getoption("--large"):
        reasons["large"] = "builds a model of full size, for minutes and gigabytes; give --large"
    if any(item.get_closest_marker("gpu") for item in items) and not has_gpu():
        reasons["gpu"] = "no CUDA device here"
    if chromium() is None:
        reasons["browser"] = "no Chromium on the path: install Debian's chromium package"
    elif find_spec("playwright") is None:
        reasons["browser"] = "playwright is missing: install the dev extra"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small models, which two threads only slow down; later tests have the threads that were there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """No test inherits the precision and the processes of another's Accelerator."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def chromium() -> str | None:
    """Path of the system's Chromium; None when there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium, for tests with the marker `browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion 1.x, built once."""
    from tests.tiny import build_tiny_pipeline

    return build_tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import build_tiny_sd2

    return build_tiny_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import build_tiny_sdxl

    return build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import build_tiny_sd3

    return build_tiny_sd3(tmp_path_factory.mktemp("sd3"))
