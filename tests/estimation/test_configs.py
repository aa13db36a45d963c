"""Shipped configs of recipes/finetune.py: valid, with their command and what `safetune estimate` says."""

import re
from pathlib import Path

import pytest

from safetune.config import parse_config
from safetune.estimation.architectures import find_architecture
from safetune.estimation.estimate import estimate
from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.plan import Launch, check_plan

FOLDER = Path(__file__).parents[2] / "recipes" / "configs"
CONFIGS = sorted(FOLDER.glob("*_finetune*.yaml"))
LARGE = [path for path in CONFIGS if not path.stem.startswith("tinysd")]


def test_both_methods_for_every_model() -> None:
    kinds = {
        f"{model}_finetune_{kind}" for model in ("sd15", "sd21", "sdxl", "sd35") for kind in ("lora", "full")
    }
    assert {path.stem for path in LARGE} == kinds | {"sdxl_finetune_qlora"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_valid_and_its_header_holds_the_command(path: Path) -> None:
    config = parse_config(FinetuneConfig, "", ["--config", str(path)])
    assert f"recipes/finetune.py --config recipes/configs/{path.name}\n" in path.read_text()
    check_plan(config, Launch(), find_architecture(config.model).family)
    assert config.batch_size * config.accumulation % 2 == 0  # half of a step's pairs are harmful
    assert (config.method == "full") == path.stem.endswith("_full")


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_header_says_that_nothing_was_measured(path: Path) -> None:
    text = path.read_text()
    assert "estimated by `safetune estimate`, not measured" in text
    assert "Nobody has run it yet" in text
    config = parse_config(FinetuneConfig, "", ["--config", str(path)])
    assert f"safetune label {config.data} --hgr {config.hgr} --model {config.model}\n" in text


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_header_says_what_the_estimate_says(path: Path) -> None:
    config = parse_config(FinetuneConfig, "", ["--config", str(path)])
    said = estimate(config, find_architecture(config.model), Launch())
    header = re.search(r"not measured: ([\d.]+) GiB at the peak, in ([\w ]+);", path.read_text())
    assert header is not None
    # Versions of diffusers may differ in what their passes hold.
    assert said.peak / 2**30 == pytest.approx(float(header[1]), rel=0.02)
    assert max(said.phases, key=said.phases.__getitem__) == header[2]
