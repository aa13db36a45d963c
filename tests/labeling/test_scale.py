"""The labeler as a process of its own: killed again and again, in two processes, over 100,000 pairs.

python -m pytest --large -s tests/labeling/test_scale.py      about half an hour on two cores
"""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from safetune.backbone import load_backbone
from safetune.labeling.finished import read_labels
from tests.labeling.test_scores import build_hgr

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


def write_tars(folder: Path, count: int, each: int = 5000) -> Path:
    """Tars of small PNG pictures of noise, captions beside them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, count, each)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for row in range(start, min(start + each, count)):
                picture = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("txt", f"a cat {row}".encode())):
                    info = tarfile.TarInfo(f"{row:07d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


def start(data: Path, hgr: Path, model: Path, out: Path, processes: int = 1) -> subprocess.Popen[bytes]:
    """`recipes/label.py` on its own; two processes through accelerate's launcher."""
    options = ["--data", data, "--hgr", hgr, "--model", model, "--out", out, "--resolution", "16"]
    program: list[object] = [sys.executable, ROOT / "recipes" / "label.py"]
    if processes > 1:
        launcher: list[object] = [sys.executable, "-m", "accelerate.commands.launch"]
        program = [
            *launcher,
            "--config_file",
            ROOT / "launch" / "cpu_ddp.yaml",
            ROOT / "recipes" / "label.py",
        ]
    command = [*map(str, program), *map(str, options), "--dtype", "float32", "--batch_size", "64"]
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )


def finish(process: subprocess.Popen[bytes], out: Path) -> list[float]:
    """Wait for the end; returns the memory (MB) at a tenth of the first look, and the most near the end."""
    shards: list[float] = []
    while process.poll() is None:
        memory = resident(process.pid)
        if memory and list(out.glob("scores/look0-*.parquet")):
            shards.append(memory)
        time.sleep(0.5)
    assert process.returncode == 0, (out.parent / f"{out.name}.log").read_text()[-3000:]
    return shards


def resident(pid: int) -> float:
    """Resident memory of a process in MB; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) / 1024 if found else 0.0


def kill_after(process: subprocess.Popen[bytes], out: Path, files: int) -> None:
    """Kill -9 as soon as there are so many files of scores."""
    while process.poll() is None and len(list(out.glob("scores/look*.parquet"))) < files:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(folder: Path, model: Path, count: int, kills: int) -> list[float]:
    """Left alone, killed, and in two processes: the same labels. Returns the memory of the first run."""
    data, hgr = write_tars(folder / "data", count), folder / "hgr"
    build_hgr(load_backbone(model).fingerprint).save_pretrained(hgr)
    outs = {name: folder / name for name in ("alone", "killed", "two")}
    memory = finish(start(data, hgr, model, outs["alone"]), outs["alone"])
    files = len(list(outs["alone"].glob("scores/look*.parquet")))
    for number in range(kills):
        process = start(data, hgr, model, outs["killed"])
        kill_after(process, outs["killed"], files * (number + 1) // (kills + 1))
    finish(start(data, hgr, model, outs["killed"]), outs["killed"])
    finish(start(data, hgr, model, outs["two"], processes=2), outs["two"])
    alone = read_labels(outs["alone"])
    assert len(alone) == count
    for name in ("killed", "two"):
        pd.testing.assert_frame_equal(read_labels(outs[name]), alone, check_exact=True)
    return memory


@pytest.mark.slow
def test_killed_and_in_two_processes(tmp_path: Path, tiny_pipeline: Path) -> None:
    check(tmp_path, tiny_pipeline, 800, kills=2)


@pytest.mark.large
def test_a_hundred_thousand_pairs(tmp_path: Path, tiny_pipeline: Path) -> None:
    memory = check(tmp_path, tiny_pipeline, int(os.environ.get("PAIRS", "100000")), kills=5)
    early, late, most = memory[len(memory) // 10], memory[-1], max(memory)
    print(f"memory: {early:.0f} MB after a tenth of the run, {late:.0f} MB at the end, {most:.0f} at most")
    assert abs(late - early) / early < 0.1
