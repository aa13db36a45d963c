"""Long jobs of many commands, stage by stage: each leaves a file, and one whose file is there is skipped."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from safetune.bundled import bundled_path
from safetune.files import write_json


@dataclass(frozen=True)
class Stage:
    """A step of a job: done when `product` exists."""

    name: str
    product: Path
    run: Callable[[], None]
    group: str = ""
    """Neighbours of one group need nothing of each other, and run side by side."""


def run_stages(stages: Sequence[Stage], out: Path) -> None:
    """Run the stages that are not done, print a line for each, and keep their times in out/seconds.json.

    A group's time is that of all its stages together. RuntimeError when a stage ends without its product.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbered = [(f"[{number}/{len(stages)}] {stage.name}", stage) for number, stage in enumerate(stages, 1)]
    for group, found in groupby(numbered, key=lambda one: one[1].group or one[1].name):
        members = list(found)
        todo = [(line, stage) for line, stage in members if not stage.product.exists()]
        for line, stage in members:
            if stage.product.exists():
                print(f"{line}: done before, {stage.product}", flush=True)
        started = time.time()
        try:
            if todo:
                with shared_cores(len(todo)) as places, ThreadPoolExecutor(places) as pool:
                    list(pool.map(run_stage, *zip(*todo, strict=True)))
        finally:
            if any(stage.product.exists() for _, stage in todo):
                add_seconds(out / "seconds.json", group, time.time() - started, len(todo) < len(members))


def run_stage(line: str, stage: Stage) -> None:
    """Run one stage between two printed lines; RuntimeError when it ends without its product."""
    print(f"{line} ...", flush=True)
    started = time.time()
    stage.run()
    if not stage.product.exists():
        raise RuntimeError(f"stage {stage.name} ended without writing {stage.product}")
    print(f"{line}: {time.time() - started:.0f} s, {stage.product}", flush=True)


@contextmanager
def shared_cores(stages: int) -> Iterator[int]:
    """How many of so many stages run at a time; the commands of several get a part of the cores, and no bars.

    Small models gain little from a second thread, so that two commands of one thread each are done sooner.
    """
    places = 1 if stages == 1 else min(stages, processes_at_once())
    if places == 1:
        yield 1
        return
    own = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places)), "TQDM_DISABLE": "1"}
    before = dict(os.environ)
    os.environ.update(own)
    try:
        yield places
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update({name: before[name] for name in own if name in before})


def processes_at_once() -> int:
    """One for each core up to 8; one in all on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)


def add_seconds(file: Path, name: str, seconds: float, to_earlier: bool) -> None:
    """Write a time into a file of times, or add it to the one that is there."""
    taken = json.loads(file.read_text()) if file.is_file() else {}
    earlier = taken.get(name, 0.0) if to_earlier else 0.0
    write_json(file, taken | {name: round(earlier + seconds, 1)})


def safetune(*arguments: str) -> None:
    """Run a `safetune` command in a process of its own."""
    run_command([sys.executable, "-m", "safetune", *arguments])


def launch(recipe: str, config: str, *arguments: str) -> None:
    """Run a recipe through `accelerate launch`, as a user would."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(bundled_path("launch/cpu.yaml")), str(bundled_path(f"recipes/{recipe}"))]
    run_command([*command, "--config", str(bundled_path(f"recipes/configs/{config}")), *arguments])


def run_command(command: list[str]) -> None:
    """RuntimeError that shows the command when it fails; its own output goes to the terminal."""
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise RuntimeError(f"status {code} from: {' '.join(command)}")
