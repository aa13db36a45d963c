"""A probe: fixed inputs, and what the trained denoiser returned for them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning
from safetune.export.adapters import attached_layers, read_header
from safetune.export.headers import LAYERS, Manifest, layer_manifest
from safetune.export.layers import Layers

PROBE_FILE = "probe.safetensors"
PROOF_FOLDER = "proof"
"""Folder of an export's probe: in the folder above it diffusers looks for weights."""
EXACT = "safetune.exact"
ROWS, SIDE = 4, 32
PROMPTS = ("a cat on the beach", "a dog in the forest")


@dataclass(frozen=True)
class Probe:
    """Inputs of a denoiser, and its outputs in training where they are known."""

    noisy: Tensor
    """(B, C, h, w)."""
    timesteps: Tensor
    """(B,), of the training schedule."""
    prompts: Conditioning
    output: Tensor | None = None
    """What the trained denoiser returned."""
    plain: Tensor | None = None
    """What it returned with its adapter off: tells what the precision of the base changes."""
    exact: bool = True
    """Whether it ran in fp32 on a CPU, as export does."""
    manifest: Manifest = field(default_factory=dict)
    """Norms of the trained adapter's layers, where they are known."""

    @torch.no_grad()
    def run(self, backbone: Backbone, denoiser: nn.Module | None = None) -> Tensor:
        """Outputs (B, C, h, w) of a denoiser, in fp32 on the CPU."""
        device = backbone.device
        inputs = self.noisy.to(device), self.timesteps.to(device), self.prompts.to(device)
        return backbone.predict(*inputs, denoiser=denoiser).float().cpu()


@torch.no_grad()
def write_probe(
    backbone: Backbone,
    denoiser: nn.Module,
    prompts: Conditioning,
    latent_shape: tuple[int, ...],
    folder: Path,
) -> None:
    """Save what the trained denoiser returns for fixed noise of at most 4 x (C, 32, 32).

    With an adapter it runs twice, the second time with the adapter off, and the header keeps each layer's
    norm.
    """
    channels, height, width = latent_shape
    rows = prompts.select(slice(ROWS)).map(lambda value: value.detach().float().cpu())
    probe = inputs_for(rows, (channels, min(height, SIDE), min(width, SIDE)))
    training = denoiser.training
    denoiser.eval()
    weight = next(denoiser.parameters())
    exact = weight.device.type == "cpu" and weight.dtype == torch.float32
    probe, layers = replace(probe, output=probe.run(backbone, denoiser), exact=exact), None
    if getattr(denoiser, "peft_config", None):
        layers = attached_layers(denoiser)
        denoiser.disable_adapters()  # type: ignore[operator]
        probe = replace(probe, plain=probe.run(backbone, denoiser))
        denoiser.enable_adapters()  # type: ignore[operator]
    denoiser.train(training)
    save_probe(probe, layers, folder)


def save_probe(probe: Probe, layers: Layers | None, folder: Path) -> None:
    """Write probe.safetensors; its header keeps rank and norm of each layer of the adapter."""
    tensors = {
        "noisy": probe.noisy,
        "timesteps": probe.timesteps,
        "prompts": probe.prompts.embeds,
        "pooled": probe.prompts.pooled,
        "output": probe.output,
        "plain": probe.plain,
    }
    known = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    header = {"format": "pt", EXACT: str(probe.exact)}
    header |= {} if layers is None else {LAYERS: layer_manifest(layers)}
    save_file(known, folder / PROBE_FILE, header)


def read_probe(file: Path) -> Probe:
    """A probe that write_probe saved."""
    tensors, header = load_file(file), read_header(file)
    prompts = Conditioning(tensors.pop("prompts"), tensors.pop("pooled", None))
    manifest = json.loads(header.get(LAYERS, "{}"))
    return Probe(prompts=prompts, **tensors, exact=header.get(EXACT) != "False", manifest=manifest)


def default_probe(backbone: Backbone) -> Probe:
    """Inputs alone, for a denoiser whose outputs in training are not known."""
    denoiser = backbone.denoiser
    side = min(int(denoiser.config.sample_size), SIDE)  # type: ignore[union-attr, arg-type]
    prompts = backbone.encode_prompts(PROMPTS).map(lambda value: value.float().cpu())
    return inputs_for(prompts, (int(denoiser.config.in_channels), side, side))  # type: ignore[union-attr, arg-type]


def inputs_for(prompts: Conditioning, shape: tuple[int, int, int]) -> Probe:
    """Noise of a fixed seed, over the timesteps from 50 to 950."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(len(prompts), *shape, generator=generator)
    return Probe(noisy, torch.linspace(50, 950, len(prompts)).long(), prompts)
