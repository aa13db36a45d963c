"""Each family with a trained redirector, new for every test."""

from collections.abc import Callable

import pytest
import torch

from tests.guidance.families import Family

FOLDERS = {"sd1": "tiny_pipeline", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl", "sd3": "tiny_sd3"}


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Callable[..., Family]:
    def load_family(name: str, dtype: torch.dtype = torch.float64) -> Family:
        return Family(name, request.getfixturevalue(FOLDERS[name]), dtype)

    return load_family


@pytest.fixture(params=list(FOLDERS))
def family(request: pytest.FixtureRequest, load: Callable[..., Family]) -> Family:
    return load(request.param)


@pytest.fixture
def sd1(load: Callable[..., Family]) -> Family:
    return load("sd1")
