"""The folder of a finished fine-tuning run, as export reads it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.loading import resolve_model
from safetune.export.adapters import read_denoiser, read_layers
from safetune.export.layers import Layers, apply_layers
from safetune.export.probe import PROBE_FILE, Probe, default_probe, read_probe
from safetune.files import ADAPTER_FILE


@dataclass(frozen=True)
class FinishedRun:
    """What a run trained."""

    path: Path
    facts: dict[str, Any]
    """Content of run.json."""

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.facts["config"])

    @property
    def method(self) -> str:
        """lora, dora or full."""
        return str(self.config.get("method", "lora"))

    @property
    def model(self) -> str:
        """The base model as diffusers takes it."""
        return resolve_model(self.config["model"])

    @property
    def weights(self) -> Path:
        """Folder of the trained weights and their probe."""
        return self.path / ("denoiser" if self.method == "full" else "adapter")

    def load_base(self) -> Backbone:
        """The base model, in fp32 on the CPU."""
        return load_backbone(self.model, variant=self.config.get("variant"))

    def read_probe(self, backbone: Backbone) -> Probe:
        """The run's probe, or inputs alone where it wrote none."""
        file = self.weights / PROBE_FILE
        return read_probe(file) if file.is_file() else default_probe(backbone)

    def merge_into(self, backbone: Backbone) -> Layers | None:
        """Give the base the trained weights; returns the adapter's layers, None for a full fine-tune."""
        if self.method == "full":
            read_denoiser(self.weights, backbone.denoiser)
            return None
        layers = read_layers(self.weights / ADAPTER_FILE, backbone.denoiser)
        apply_layers(backbone.denoiser, layers)
        return layers


def read_run(path: Path) -> FinishedRun:
    """ValueError for a folder without run.json or without trained weights."""
    facts = json.loads((path / "run.json").read_text()) if (path / "run.json").is_file() else {"config": {}}
    run = FinishedRun(path, facts)
    wanted = run.weights / ("config.json" if run.method == "full" else ADAPTER_FILE)
    if not run.config or not wanted.is_file():
        raise ValueError(f"{path} is no finished fine-tuning run: {wanted} and run.json are needed")
    return run


def check_output(out: Path, force: bool, sources: Iterable[Path]) -> None:
    """ValueError for an output folder that may not be replaced.

    That is one in use without `force`, and always one that holds a source or the working folder.
    """
    if out.is_file():
        raise ValueError(f"{out} is a file; give a folder as --out")
    held = [path for path in (*sources, Path.cwd()) if path.resolve().is_relative_to(out.resolve())]
    if held:
        raise ValueError(f"{out} would be replaced, and it holds {held[0]}; give another folder as --out")
    if out.exists() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} is not empty; give --force to replace it, or another folder as --out")
