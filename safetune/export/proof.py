"""Proof of exported files: each is loaded by its own reader into a fresh model and compared."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safetune.backbone import Backbone, load_backbone
from safetune.export.adapters import attached_layers
from safetune.export.formats import has_kohya_reader, read_original
from safetune.export.layers import Layers, apply_layers, differing_layer
from safetune.export.probe import Probe

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OUTPUT_TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Largest difference of an output, as a share of the largest output (of 1 where that is smaller)."""
UPDATE_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
"""Largest difference of a layer's update, as a share of its norm."""
PICTURE_STEPS, PICTURE_SIDE = 4, 256
PICTURE_PROMPT = "a cat on the beach"


@dataclass(frozen=True)
class Reference:
    """What every exported file has to give: the trained weights merged into the base, in fp32."""

    model: str
    """The base model."""
    fresh: Callable[[], Backbone]
    """Loads the base model again."""
    probe: Probe
    layers: Layers | None
    """The adapter; None for a full fine-tune."""
    plain: Tensor
    """Outputs of the base (B, C, h, w)."""
    output: Tensor
    """Outputs of the merged model."""
    picture: np.ndarray
    """A picture of the merged model (h, w, 3), uint8."""


def load_adapter(file: Path, name: str, backbone: Backbone) -> Layers:
    """Load a file of the format into a fresh backbone by its own reader, and return what that reader saw.

    diffusers reads its own files and kohya's of SD 1.x, 2.x and SDXL. It has no reader for ComfyUI's and for
    kohya's of SD 3: those are read by ComfyUI's key map and merged.
    """
    if name == "diffusers" or (name == "kohya" and has_kohya_reader(backbone.denoiser)):
        backbone.pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="read")
        return attached_layers(backbone.denoiser, adapter="read")
    layers = read_original(file, backbone.denoiser, name)
    apply_layers(backbone.denoiser, layers)
    return layers


def prove_adapter(
    file: Path, name: str, dtype: str, layers: Layers, reference: Reference
) -> dict[str, object]:
    """Facts of a file that loads and works as the trained adapter; RuntimeError names the layer otherwise."""
    backbone = reference.fresh()
    fault = differing_layer(layers, load_adapter(file, name, backbone), UPDATE_TOLERANCE[dtype])
    if fault is not None:
        raise RuntimeError(f"{file.name}: {fault}")
    return compare(file.name, backbone, dtype, reference)


def prove_merged(
    path: Path, config: str | None, dtype: str, reference: Reference, merged: Backbone
) -> dict[str, object]:
    """Facts of a merged folder or single file that holds the very weights of `merged`."""
    backbone = load_backbone(path, config=config)
    expected = merged.denoiser.state_dict()
    found = backbone.denoiser.state_dict()
    for key, value in expected.items():
        if key not in found or not torch.equal(found[key], value.float()):
            raise RuntimeError(f"{path.name}: layer {key.rpartition('.')[0]} differs from the merged weights")
    return compare(path.name, backbone, dtype, reference)


def compare(name: str, backbone: Backbone, dtype: str, reference: Reference) -> dict[str, object]:
    """Outputs and a picture of a loaded model beside the reference's; RuntimeError when they differ."""
    output, tolerance = reference.probe.run(backbone), output_tolerance(reference.output, dtype)
    if torch.equal(output, reference.plain) and not torch.equal(reference.output, reference.plain):
        raise RuntimeError(f"{name}: it loads, but the output of the base model does not change")
    difference = largest(output, reference.output)
    if not difference <= tolerance:
        raise RuntimeError(f"{name}: its output differs by {difference:.2e}, more than {tolerance:.0e}")
    picture = draw(backbone)
    levels = int(np.abs(picture.astype(int) - reference.picture).max())
    if dtype == "fp32" and levels > 1:
        raise RuntimeError(f"{name}: its picture differs by {levels} of 255 levels")
    return {
        "max_abs_diff": difference,
        "tolerance": tolerance,
        "picture_sha256": picture_hash(picture),
        "picture_levels": levels,
    }


def check_probe(probe: Probe, plain: Tensor, output: Tensor) -> dict[str, float] | None:
    """Compare merged outputs with those in training; None where these are not known.

    `plain` is what the fresh base returns.
    """
    if probe.output is None:
        return None
    tolerance = probe_tolerance(probe, probe.output, plain, "fp32")
    difference = largest(output, probe.output)
    if not difference <= tolerance:
        raise RuntimeError(
            f"the run's weights are not those that it trained: outputs differ by {difference:.2e}, more than "
            f"{tolerance:.0e}"
        )
    return {"max_abs_diff": difference, "tolerance": tolerance}


def probe_tolerance(probe: Probe, output: Tensor, plain: Tensor, dtype: str) -> float:
    """How far an output may be from a probe's, loaded from a file of that precision.

    In training the base may have been held in half precision or in few bits, on a device that rounds. How
    far its outputs are from those of the fresh base tells how far the trained ones may be: three times that.
    Where that is not known, anything but fp32 on a CPU counts as half precision.
    """
    if probe.plain is not None:
        return output_tolerance(output, dtype) + 3 * largest(probe.plain, plain)
    return output_tolerance(output, dtype if probe.exact or dtype == "bf16" else "fp16")


def output_tolerance(output: Tensor, dtype: str) -> float:
    """How far an output may be from this one, loaded from a file of that precision."""
    return OUTPUT_TOLERANCE[dtype] * max(1.0, float(output.abs().max()))


def largest(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference."""
    return float((first - second).abs().max())


def draw(backbone: Backbone) -> np.ndarray:
    """A picture (h, w, 3), uint8, of a fixed prompt and seed in four steps, at most 256 pixels a side."""
    pipeline, config = backbone.pipeline, backbone.denoiser.config
    side = min(PICTURE_SIDE, int(config.sample_size) * pipeline.vae_scale_factor)  # type: ignore[union-attr, arg-type]
    picture = pipeline(
        PICTURE_PROMPT,
        height=side,
        width=side,
        num_inference_steps=PICTURE_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    return np.asarray((picture * 255).round().astype(np.uint8))


def picture_hash(picture: np.ndarray) -> str:
    """SHA-256 of a picture's pixels."""
    return hashlib.sha256(picture.tobytes()).hexdigest()
