"""kill -9 at 20 random moments of one run: however often it is cut, it ends with the same bytes."""

import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from recipes import finetune
from safetune.checkpoints import last_checkpoint
from tests.recipes.tuning import METHODS, assert_same_runs

OPERATIONS = ("open", "rename", "replace", "mkdir", "rmdir", "unlink")


@pytest.mark.slow
def test_killed_at_20_random_moments_it_ends_the_same(settings: dict[str, object], tmp_path: Path) -> None:
    """By turns after some checkpoint, and at a file operation: of the whole run at first, of saves later.

    Every run has a process of its own: what other tests set in this one (threads) would round otherwise.
    """
    options = {**settings, **METHODS["lora"], "dropout": 0.1, "steps": 100, "checkpoint_every": 1}
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    context = get_context("forkserver")
    context.set_forkserver_preload(["recipes.finetune"])

    def start(output: Path, operation: int = 0, in_saves: bool = False) -> BaseProcess:
        words = [f"--{name}={value}" for name, value in {**options, "output_dir": output}.items()]
        child = context.Process(target=tune_until_killed, args=(words, operation, in_saves))
        child.start()
        return child

    rng, done = np.random.default_rng(0), [0]
    for death in range(20):
        operation = 0 if death % 2 else int(rng.integers(1, 60))
        child = start(cut, operation, in_saves=death >= 10)
        if not operation:
            wait_for_checkpoint(cut, done[-1] + int(rng.integers(1, 6)), child)
            time.sleep(rng.uniform(0, 0.1))
            child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"death {death}"
        done.append(last_checkpoint(cut / "checkpoints")[0])
    assert done == sorted(done) and 10 < done[-1] < 100
    for output in (straight, cut):
        child = start(output)
        child.join()
        assert child.exitcode == 0
    assert_same_runs(straight, cut)


def wait_for_checkpoint(run: Path, step: int, child: BaseProcess) -> None:
    """Until the run has saved this step: seconds would be too many on a fast machine."""
    while child.is_alive() and last_checkpoint(run / "checkpoints")[0] < step:
        time.sleep(0.02)


def tune_until_killed(words: list[str], operation: int, in_saves: bool) -> None:
    """Run the recipe; SIGKILL at that many file operations, for 0 none (the parent may kill).

    They count from the start, or `in_saves` from the first save.
    """
    count = itertools.count(1)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if next(count) == operation:  # one step, whichever thread asks
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    def watch_files() -> None:
        io.open = dying(io.open)  # type: ignore[assignment]
        for name in OPERATIONS:
            setattr(os, name, dying(getattr(os, name)))

    def save_watched(*args: object, **facts: object) -> None:
        finetune.save_checkpoint = save  # type: ignore[attr-defined]
        watch_files()
        save(*args, **facts)  # type: ignore[arg-type]

    save = finetune.save_checkpoint  # type: ignore[attr-defined]
    if in_saves:
        finetune.save_checkpoint = save_watched  # type: ignore[attr-defined]
    else:
        watch_files()
    sys.argv = ["finetune.py", *words]
    finetune.main()
