"""Long jobs of many commands, stage by stage: each leaves a file, and one whose file is there is skipped."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetune.bundled import bundled_path
from safetune.files import write_json


@dataclass(frozen=True)
class Stage:
    """A step of a job: done when `product` exists."""

    name: str
    product: Path
    run: Callable[[], None]


def run_stages(stages: Sequence[Stage], out: Path) -> None:
    """Run the stages that are not done, print a line for each, and keep their times in out/seconds.json.

    RuntimeError when a stage ends without its product.
    """
    out.mkdir(parents=True, exist_ok=True)
    seconds = out / "seconds.json"
    for number, stage in enumerate(stages, 1):
        line = f"[{number}/{len(stages)}] {stage.name}"
        if stage.product.exists():
            print(f"{line}: done before, {stage.product}", flush=True)
            continue
        print(f"{line} ...", flush=True)
        started = time.time()
        stage.run()
        taken = json.loads(seconds.read_text()) if seconds.is_file() else {}
        write_json(seconds, taken | {stage.name: round(time.time() - started, 1)})
        if not stage.product.exists():
            raise RuntimeError(f"stage {stage.name} ended without writing {stage.product}")
        print(f"{line}: {time.time() - started:.0f} s, {stage.product}", flush=True)


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
