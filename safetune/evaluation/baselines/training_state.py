"""State of a small training in one safetensors file: weights, Adam's averages, the step."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from safetune.export.adapters import read_header

AVERAGES = ("exp_avg", "exp_avg_sq")


def save_state(
    file: Path, key: str, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Adam
) -> None:
    """Write the state after `step` steps, whole or not at all; `key` says what it hangs on."""
    tensors = {f"weight.{name}": value.detach().contiguous() for name, value in parameters.items()}
    for name, value in parameters.items():
        for average in AVERAGES:
            tensors[f"{average}.{name}"] = optimizer.state[value][average].contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "key": key})
    temporary.replace(file)


@torch.no_grad()
def load_state(
    file: Path, key: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Adam
) -> int:
    """Restore a state, if the file is there; returns the steps already done. ValueError for another key."""
    if not file.is_file():
        return 0
    header = read_header(file)
    if header.get("key") != key:
        raise ValueError(
            f"{file} is the state of a training with other settings: go on with those, or delete it"
        )
    step = int(header["step"])
    with safe_open(file, framework="pt") as stream:
        for name, value in parameters.items():
            value.copy_(stream.get_tensor(f"weight.{name}"))
            averages = {average: stream.get_tensor(f"{average}.{name}").to(value) for average in AVERAGES}
            optimizer.state[value] = {"step": torch.tensor(float(step)), **averages}
    return step
