"""`safetune verify`: is an adapter file whole, readable for its base model, and as strong as it was exported?

What is true, the file itself says (keys, hashes and norms in the header that export wrote), and then the
probe beside it. An adapter of others has neither: its names and completeness are checked, its strength
cannot be.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffusers import ModelMixin
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from safetune.backbone import Backbone, load_backbone
from safetune.export.adapters import read_header
from safetune.export.formats import COMFYUI, KOHYA, component, split_key, stems
from safetune.export.headers import LAYERS, TENSORS, manifest_faults, tensor_hash
from safetune.export.probe import PROBE_FILE, PROOF_FOLDER, Probe, read_probe
from safetune.export.proof import DTYPES, UPDATE_TOLERANCE, largest, load_adapter, probe_tolerance

PREFIXES = {"unet.": "diffusers", "transformer.": "diffusers", KOHYA: "kohya", COMFYUI: "comfyui"}
TEXT_ENCODERS = ("lora_te", "text_encoder")


@dataclass
class Verification:
    """What was found out about a file."""

    format: str
    layers: int = 0
    """Layers of the denoiser that the file changes."""
    faults: list[str] = field(default_factory=list)
    """Each names its layer."""
    checked: list[str] = field(default_factory=list)
    """What was compared, and found right."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared, and why."""


def verify_file(file: Path, model: str, probe_file: Path | None = None) -> Verification:
    """Check an adapter of any of the formats against its base model; see the module's docstring.

    The probe is looked for beside the file and in proof/, where none is given. Raises ValueError for a file
    that is no adapter.
    """
    found = Verification(detect_format(file))
    header, tensors = read_header(file), load_file(file)
    backbone = load_backbone(model)
    probe_file = probe_file or next((path for path in probe_places(file) if path.is_file()), None)
    probe = None if probe_file is None else read_probe(probe_file)
    manifest = json.loads(header.get(LAYERS, "{}")) or (probe.manifest if probe else {})
    check_keys(found, tensors, backbone.denoiser)
    check_hashes(found, tensors, json.loads(header.get(TENSORS, "{}")))
    if not manifest:
        check_siblings(found, tensors, backbone.denoiser)
    if found.faults:
        return found
    try:
        layers = load_adapter(file, found.format, backbone)
    except (ValueError, RuntimeError, KeyError) as error:
        found.faults.append(f"its own reader refuses it: {error}")
        return found
    found.layers = len(layers)
    dtype = file_dtype(tensors)
    if manifest:
        # Norms of a probe are of the weights as training held them, which ZeRO rounds to half precision.
        rounded = probe is not None and not probe.exact and LAYERS not in header
        found.faults += manifest_faults(layers, manifest, UPDATE_TOLERANCE["bf16" if rounded else dtype])
        found.checked.append(f"updates of {len(manifest)} layers")
    if probe is not None:
        check_outputs(found, probe, backbone, model, dtype)
    elif not manifest:
        found.notes.append("it has no manifest and no probe beside it: its strength cannot be checked")
    return found


def detect_format(file: Path) -> str:
    """diffusers, kohya or comfyui, by the prefix of most keys; ValueError where none is known."""
    with safe_open(file, framework="pt") as stream:
        keys = list(stream.keys())
    known = Counter(name for key in keys for prefix, name in PREFIXES.items() if key.startswith(prefix))
    if not known:
        raise ValueError(
            f"{file} is no adapter of a denoiser: its first key is {keys[0] if keys else 'missing'}; "
            f"expected the prefix {', '.join(PREFIXES)}"
        )
    return known.most_common(1)[0][0]


def probe_places(file: Path) -> list[Path]:
    """Where the probe of an adapter lies: in a run's folder, and in an export."""
    return [file.parent / PROBE_FILE, file.parent / PROOF_FOLDER / PROBE_FILE]


def layer_parts(keys: Iterable[str], known: Mapping[str, str]) -> dict[str, set[str]]:
    """Parts (down, up, alpha, magnitude) of each layer that the base model has."""
    parts: dict[str, set[str]] = {}
    for key in keys:
        stem, part = split_key(key) or (key, "")
        if stem in known and part:
            parts.setdefault(known[stem], set()).add(part)
    return parts


def check_keys(found: Verification, tensors: Mapping[str, Tensor], denoiser: ModelMixin) -> None:
    """Every key belongs to a layer of the base model, and every layer is whole."""
    known = stems(denoiser, found.format)
    for key in tensors:
        stem, part = split_key(key) or (key, "")
        if key.startswith(TEXT_ENCODERS):
            found.notes.append(f"{key} is of a text encoder, which is not checked")
        elif stem not in known or not part:
            prefix = next(prefix for prefix, name in PREFIXES.items() if name == found.format)
            wrong = "" if key.startswith(tuple(PREFIXES)) else f": wrong prefix, {found.format} has {prefix}"
            found.faults.append(f"layer {stem}: the base model has no place for the key {key}{wrong}")
    for layer, parts in layer_parts(tensors, known).items():
        needed = {"down", "up", *["alpha"] * (found.format == "kohya")}
        found.faults += [f"layer {layer}: {part} is missing" for part in sorted(needed - parts)]
    found.checked.append(f"{len(tensors)} keys, by those of {component(denoiser)}")


def check_hashes(found: Verification, tensors: Mapping[str, Tensor], hashes: Mapping[str, str]) -> None:
    """Every tensor that export wrote is there, unchanged."""
    for key, value in hashes.items():
        stem, part = split_key(key) or (key, "")
        if key not in tensors:
            found.faults.append(f"layer {stem}: {part} is missing ({key})")
        elif tensor_hash(tensors[key]) != value:
            found.faults.append(f"layer {stem}: {part} is not what was exported ({key})")
    if hashes:
        found.checked.append(f"hashes of {len(hashes)} tensors")


def check_siblings(found: Verification, tensors: Mapping[str, Tensor], denoiser: ModelMixin) -> None:
    """Without a manifest: where most modules of a kind have a layer, the others should have one."""
    known = stems(denoiser, found.format)
    present = set(layer_parts(tensors, known))
    kinds: dict[str, set[str]] = {}
    for layer in known.values():
        kinds.setdefault(kind_of(layer), set()).add(layer)
    for kind, layers in kinds.items():
        share = len(layers & present) / len(layers)
        if 0.5 < share < 1:
            missing = sorted(layers - present)
            found.faults += [
                f"layer {layer} is missing, unlike {share:.0%} of the {kind}" for layer in missing
            ]


def kind_of(layer: str) -> str:
    """Name of a layer without its place: attn1.to_q of every block is one kind."""
    return re.sub(r"^.*(?:blocks|attentions|resnets|samplers)\.\d+\.", "", layer)


def check_outputs(found: Verification, probe: Probe, backbone: Backbone, model: str, dtype: str) -> None:
    """The loaded model returns what the trained one did."""
    if probe.output is None:
        return
    plain = probe.run(load_backbone(model))
    allowed = probe_tolerance(probe, probe.output, plain, dtype)
    difference = largest(probe.run(backbone), probe.output)
    if difference <= allowed:
        found.checked.append(f"outputs, which differ from the probe's by {difference:.1e}")
    else:
        found.faults.append(
            f"outputs differ from the probe's by {difference:.2e}, more than {allowed:.0e}: weights were "
            f"changed, or {model} is not the base model that they were trained on"
        )


def file_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The coarsest precision of a file's tensors."""
    kinds = {value.dtype for value in tensors.values()}
    return next((name for name in ("bf16", "fp16") if DTYPES[name] in kinds), "fp32")
