"""Results of others, as they publish them: a pipeline, a UNet, some of its weights, or a LoRA."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.backbone.loading import PICKLES
from safetune.export.adapters import save_denoiser
from safetune.export.formats import component
from safetune.export.layers import apply_layers
from safetune.export.proof import load_adapter
from safetune.export.verification import Verification, check_keys, detect_format
from safetune.files import replace_folder, write_json
from safetune.runs import versions

logger = logging.getLogger(__name__)

Kind = Literal["pipeline", "denoiser", "weights", "lora"]
SHOWN = 5
"""Keys that an error names."""
LORA_PARTS = (".lora_", ".lora.", "lora_unet_", "lora_te")
ORIGINAL = "model.diffusion_model."


def load_others(path: Path, model: str = "tinysd") -> Backbone:
    """The base `model` with what others made of it.

    `path` is a pipeline folder of diffusers, which comes whole and needs no base; a folder with a UNet; a
    .safetensors file of UNet weights in diffusers' names, all of them or some, as UCE and ESD publish them;
    or of a LoRA. Raises ValueError for pickled files, saying how to convert them, and for keys that do not
    fit.
    """
    kind = detect_kind(path)
    if kind == "pipeline":
        return load_backbone(path)
    backbone = load_backbone(model)
    if kind == "lora":
        fuse_lora(path, backbone, model)
        return backbone
    weights = folder_weights(path, backbone.denoiser) if kind == "denoiser" else load_file(path)
    put_weights(weights, backbone.denoiser, str(path))
    return backbone


def convert_others(path: Path, out: Path, model: str = "tinysd") -> Kind:
    """Write load_others(path, model) as a denoiser folder with run.json, what `--denoiser` reads.

    ValueError for an `out` that exists, and for a pipeline whose text encoder is not the base's.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: give a new folder as --out")
    kind, base = detect_kind(path), load_backbone(model)
    found = load_others(path, model)
    if kind == "pipeline":
        encoders = [weights_fingerprint(one.pipeline.text_encoder) for one in (found, base)]
        if encoders[0] != encoders[1]:
            raise ValueError(
                f"{path} has a text encoder of its own, which --denoiser would lose: give it as --model"
            )
        put_weights(found.denoiser.state_dict(), base.denoiser, str(path))
    with replace_folder(out) as folder:
        save_denoiser(found.denoiser, folder)
        facts = {"baseline": "others", "kind": kind, "model": model, "base": base.fingerprint}
        write_json(folder / "run.json", {**facts, "versions": versions()})
    return kind


def detect_kind(path: Path) -> Kind:
    """What lies at `path`; ValueError for what is none of them."""
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return "pipeline"
        files = sorted(file.name for file in path.iterdir())
        if "config.json" in files and any(name.endswith(".safetensors") for name in files):
            return "denoiser"
        for name in files:
            refuse_pickle(path / name)
        raise ValueError(
            f"{path} holds {', '.join(files[:SHOWN]) or 'nothing'}: give a pipeline folder "
            "(model_index.json), a folder with a UNet (config.json and .safetensors), or a .safetensors file"
        )
    refuse_pickle(path)
    if not path.is_file() or path.suffix != ".safetensors":
        raise ValueError(f"{path}: give a folder in diffusers layout or a .safetensors file that is there")
    with safe_open(path, framework="pt") as stream:
        keys = list(stream.keys())
    if any(part in key for key in keys for part in LORA_PARTS):
        return "lora"
    if any(key.startswith(ORIGINAL) for key in keys):
        raise ValueError(
            f"{path} has the names of Stable Diffusion's original code ({ORIGINAL}...): give a whole "
            "checkpoint as --model, or write it in diffusers' names by "
            "UNet2DConditionModel.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    return "weights"


def refuse_pickle(path: Path) -> None:
    """ValueError for a pickled file, with what turns it into a file that cannot run code."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read. Convert it where you trust it, then "
            'give the new file: python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{path.name}', map_location='cpu', weights_only=True); "
            "w = w.get('state_dict', w); save_file({k: v.contiguous() for k, v in w.items()}, "
            f"'{path.stem}.safetensors')\""
        )


def folder_weights(folder: Path, denoiser: nn.Module) -> dict[str, Tensor]:
    """Weights of a denoiser's folder; ValueError for another kind of denoiser, and for one with gaps."""
    name, own = json.loads((folder / "config.json").read_text()).get("_class_name"), type(denoiser).__name__
    if name != own:
        raise ValueError(
            f"{folder} holds a {name}, the base model has a {own}: give the base it was made from"
        )
    loaded, info = type(denoiser).from_pretrained(  # type: ignore[attr-defined]
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"{folder}: weights are missing: {shown(info['missing_keys'])}")
    return dict(loaded.state_dict())


@torch.no_grad()
def put_weights(weights: Mapping[str, Tensor], denoiser: nn.Module, source: str) -> int:
    """Copy weights, all or some, into a denoiser; returns how many. ValueError names keys that do not fit."""
    prefix = f"{component(denoiser)}."
    named = {key.removeprefix(prefix): value for key, value in weights.items()}
    own = denoiser.state_dict()
    unknown = [key for key in named if key not in own]
    if unknown or not named:
        raise ValueError(
            f"{source}: the base model has no place for {shown(unknown) if named else 'an empty file'}; "
            f"expected names such as {next(iter(own))}"
        )
    other = [
        f"{key} {tuple(value.shape)}, in the base {tuple(own[key].shape)}"
        for key, value in named.items()
        if value.shape != own[key].shape
    ]
    if other:
        raise ValueError(
            f"{source} is of another architecture: {shown(other)}; give the base it was made from"
        )
    broken = [key for key, value in named.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{source}: weights that are no numbers in {shown(broken)}")
    if all(torch.equal(value.to(own[key]), own[key]) for key, value in named.items()):
        logger.warning("%s holds the base model's own weights: nothing is changed", source)
    for key, value in named.items():
        own[key].copy_(value)
    return len(named)


def fuse_lora(file: Path, backbone: Backbone, model: str) -> None:
    """Add a LoRA of any known format to the denoiser; ValueError names keys that do not fit."""
    found = Verification(detect_format(file))
    check_keys(found, load_file(file), backbone.denoiser)
    if found.faults:
        raise ValueError(f"{file} does not fit {model}: {shown(found.faults)}")
    if found.notes:
        raise ValueError(
            f"{file} changes the text encoder too, which is not read here: merge it into a pipeline folder "
            "by diffusers (load_lora_weights, fuse_lora, save_pretrained) and give that"
        )
    apply_layers(backbone.denoiser, load_adapter(file, found.format, load_backbone(model)))


def shown(names: list[str]) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
