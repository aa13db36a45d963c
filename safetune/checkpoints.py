"""Resumable training state: two slots written in turn, so that a cut during a save loses nothing."""

import json
from pathlib import Path

from accelerate import Accelerator

from safetune.files import write_json


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save the state after `step` steps; every rank calls it. The pointer to it is written last."""
    slot = "b" if last_checkpoint(folder)[1] == "a" else "a"
    accelerator.wait_for_everyone()
    accelerator.save_state(str(folder / slot))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(folder / "last.json", {"step": step, "slot": slot})
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> int:
    """Restore the newest whole checkpoint, if any; returns the number of steps already done."""
    step, slot = last_checkpoint(folder)
    if slot:
        accelerator.load_state(str(folder / slot))
    return step


def last_checkpoint(folder: Path) -> tuple[int, str]:
    """(steps done, slot) of the newest whole checkpoint; (0, "") when there is none."""
    pointer = folder / "last.json"
    if not pointer.is_file():
        return 0, ""
    last = json.loads(pointer.read_text())
    return int(last["step"]), str(last["slot"])
