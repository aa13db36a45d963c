"""Resumable training state, written so that a cut at any moment loses only the steps since the last save.

A checkpoint is a folder such as step-000100. It is written under a hidden name and takes its own when it is
whole, and it loses that name before it is deleted: a folder named step-... is never a part.
"""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from safetune.files import write_json
from safetune.launching import mode

FACTS = "checkpoint.json"
"""Written into each checkpoint: step, mode, number of processes and what the recipe adds."""


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, keep: int = 2, **facts: object
) -> None:
    """Save the state after `step` steps and keep the newest `keep` checkpoints; every process calls it.

    Frozen weights are left out, for they come from the base model; FSDP2 alone saves them too. `facts` are
    JSON values for load_checkpoint to compare. Several machines need a folder that all of them see.
    """
    if _newest_for_all(folder)[0] == step:
        return
    temporary = folder / f".step-{step:06d}.tmp"
    if accelerator.is_main_process:
        for part in folder.glob(".step-*.tmp"):  # of killed runs
            shutil.rmtree(part)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    zero = mode(accelerator).startswith("zero")
    hook = accelerator.register_save_state_pre_hook(_drop_frozen)
    accelerator.save_state(str(temporary), **({"exclude_frozen_parameters": True} if zero else {}))
    hook.remove()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(temporary / FACTS, {"step": step, **_identity(accelerator), **facts})
        temporary.rename(folder / f"step-{step:06d}")
        for old in whole_checkpoints(folder)[:-keep]:
            hidden = old.rename(old.with_name(f".{old.name}.tmp"))
            shutil.rmtree(hidden)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path, **facts: object) -> int:
    """Restore the newest checkpoint, if any; returns the steps already done. Every process calls it.

    ValueError when it was saved by another number of processes, in another mode, or with other `facts`.
    """
    step, newest = _newest_for_all(folder)
    if newest is None:
        return 0
    saved = json.loads((newest / FACTS).read_text())
    wanted = json.loads(json.dumps({**_identity(accelerator), **facts}, default=str))
    changes = [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in wanted.items()
        if saved.get(name) != value
    ]
    if changes:
        raise ValueError(
            f"{newest} was saved otherwise: {'; '.join(changes)}. Go on as it was saved, or give another "
            "--output_dir to start anew"
        )
    options = {"fsdp2": {}, "single": {"strict": False}, "ddp": {"strict": False}}
    accelerator.load_state(str(newest), **options.get(mode(accelerator), {"load_module_strict": False}))
    accelerator.step = 0  # counts the passes of a step; a checkpoint lies between steps
    return step


def last_checkpoint(folder: Path) -> tuple[int, Path | None]:
    """(steps done, folder) of the newest checkpoint; (0, None) when there is none."""
    found = whole_checkpoints(folder)
    return (_step_of(found[-1]), found[-1]) if found else (0, None)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Folders of checkpoints, oldest first."""
    return sorted(folder.glob("step-*"), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _newest_for_all(folder: Path) -> tuple[int, Path | None]:
    """What the main process sees as last_checkpoint: a shared file system can be late on other machines."""
    newest = [last_checkpoint(folder)]
    broadcast_object_list(newest)
    return newest[0]


def _identity(accelerator: Accelerator) -> dict[str, object]:
    return {"mode": mode(accelerator), "processes": accelerator.num_processes}


def _drop_frozen(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
    """Leave frozen parameters out; where accelerate saves models by itself there are no weights here."""
    for model, state in zip(models, weights, strict=False):
        for name, param in model.named_parameters():
            if not param.requires_grad:
                state.pop(name, None)
