"""Proof of an exported file: a probe taken from the trained weights, compared with what a reader loads."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PROBE_FILE = "probe.safetensors"


@torch.no_grad()
def write_probe(denoiser: nn.Module, prompts: Tensor, latent_shape: tuple[int, ...], folder: Path) -> None:
    """Save fixed inputs and the trained denoiser's fp32 outputs on them; prompts (B, L, D) in fp32."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(len(prompts), *latent_shape, generator=generator)
    timesteps = torch.linspace(50, 950, len(prompts)).long()
    device = next(denoiser.parameters()).device
    output = denoiser(noisy.to(device), timesteps.to(device), encoder_hidden_states=prompts.to(device)).sample
    probe = {"noisy": noisy, "timesteps": timesteps, "prompts": prompts, "output": output}
    save_file({name: value.cpu().contiguous() for name, value in probe.items()}, folder / PROBE_FILE)


@torch.no_grad()
def probe_difference(probe_file: Path, adapter_file: Path, base: str) -> float:
    """Largest absolute difference between the probe's output and a fresh base's with the adapter loaded.

    RuntimeError when the file changes nothing, which is how unreadable keys show.
    """
    probe = load_file(probe_file)
    pipeline = DiffusionPipeline.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    inputs = {"timestep": probe["timesteps"], "encoder_hidden_states": probe["prompts"]}
    plain = pipeline.unet(probe["noisy"], **inputs).sample
    pipeline.load_lora_weights(adapter_file.parent, weight_name=adapter_file.name)
    adapted = pipeline.unet(probe["noisy"], **inputs).sample
    if torch.equal(plain, adapted):
        raise RuntimeError(f"{adapter_file}: diffusers loaded it, but the output of {base} did not change")
    return float((adapted - probe["output"]).abs().max())
