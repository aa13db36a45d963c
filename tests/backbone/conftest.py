"""Tiny pipelines of the families, each built once."""

from pathlib import Path

import pytest

from tests.tiny import build_tiny_sd2, build_tiny_sd3, build_tiny_sdxl


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd3(tmp_path_factory.mktemp("sd3"))
