"""Baselines of models so small that one thread is the fastest."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def all_with_one_thread(one_thread: None) -> None:
    """Every module here."""
