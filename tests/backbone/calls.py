"""What a module was called with."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[dict[str, object]]]:
    """The arguments of each call by name, and its output under "output"."""
    calls: list[dict[str, object]] = []

    def record(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output.sample
        calls.append({**bound.arguments, "output": output})

    handle = module.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
