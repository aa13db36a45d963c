"""`safetune export`: from a run folder to files that others load, each one proven."""

import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from safetune.backbone import Backbone
from safetune.export.card import write_card
from safetune.export.formats import LORA_FORMATS, lora_tensors, refuse_dora
from safetune.export.headers import lora_header, manifest_faults, model_header
from safetune.export.layers import apply_layers, scaled, to_dtype
from safetune.export.probe import PROOF_FOLDER, save_probe
from safetune.export.proof import (
    DTYPES,
    UPDATE_TOLERANCE,
    Reference,
    check_probe,
    draw,
    picture_hash,
    prove_adapter,
    prove_merged,
)
from safetune.export.run import FinishedRun, check_output, read_run
from safetune.export.single_file import check_single_file, write_single_file
from safetune.files import ADAPTER_FILE, replace_folder, write_json
from safetune.reporting import GridRow

logger = logging.getLogger(__name__)

FORMATS = (*LORA_FORMATS, "merged", "single-file")

Facts = dict[str, Any]


def export_run(
    run_folder: Path,
    out: Path,
    formats: Sequence[str] = (),
    dtype: str = "fp32",
    strength: float = 1.0,
    force: bool = False,
    license_name: str = "other",
    results: Facts | None = None,
    grid: Sequence[GridRow] = (),
    repository: str | None = None,
) -> Facts:
    """Write a fine-tuning run's weights in every format and prove each file; returns export.json's content.

    `formats` are of FORMATS (default: diffusers, or merged for a full fine-tune). `strength` is multiplied
    into an adapter. `results` (results.json), `grid` and `repository` go into the card. Raises ValueError for
    bad arguments and RuntimeError, which names the layer, for a file that is not what was trained; nothing is
    left then.
    """
    run = read_run(run_folder)
    formats = tuple(formats) or (("merged",) if run.method == "full" else ("diffusers",))
    check_arguments(run, out, formats, dtype, strength, force)
    merged = run.load_base()
    if "single-file" in formats:
        check_single_file(merged.denoiser, run.model, formats)
    reference, probe_facts = build_reference(run, merged, strength)
    with replace_folder(out) as folder:
        header = {"title": out.name, "license_name": license_name, "config": run.config}
        files = write_adapters(folder, formats, dtype, reference, merged, header)
        files |= write_merged(folder, formats, dtype, reference, merged, header)
        facts = describe(folder, files, dtype, strength, reference, probe_facts)
        (folder / PROOF_FOLDER).mkdir()
        proven = replace(reference.probe, output=reference.output, plain=None, exact=True)
        save_probe(proven, reference.layers, folder / PROOF_FOLDER)
        write_json(folder / "export.json", facts)
        write_card(folder, out.name, run, facts, license_name, results, grid, repository or str(out))
    return facts


def check_arguments(
    run: FinishedRun, out: Path, formats: Sequence[str], dtype: str, strength: float, force: bool
) -> None:
    """Every mistake that can be seen before anything is loaded."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"format {', '.join(unknown)}; allowed: {', '.join(FORMATS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}; allowed: {', '.join(DTYPES)}")
    if not math.isfinite(strength) or strength == 0:
        raise ValueError(f"strength {strength}; allowed: any number but 0, as 0.8")
    check_output(out, force, [run.path, Path(run.model)])
    adapters = [name for name in formats if name in LORA_FORMATS]
    if run.method == "full" and adapters:
        raise ValueError(
            f"format {', '.join(adapters)}: the run trained all weights. Make a LoRA of it with `safetune "
            "extract`, or export it as merged"
        )
    if run.method != "lora" and strength != 1:
        kind = "full fine-tune" if run.method == "full" else "DoRA"
        raise ValueError(f"strength {strength}: a {kind} has no strength but 1")
    if run.method == "dora" and set(adapters) - {"diffusers"}:
        refuse_dora(", ".join(name for name in adapters if name != "diffusers"))


def build_reference(run: FinishedRun, merged: Backbone, strength: float) -> tuple[Reference, Facts | None]:
    """Merge the run's weights into `merged` and check them against its own probe, then set the strength."""
    probe = run.read_probe(merged)
    if probe.output is None:
        logger.warning(
            "%s kept no probe (sharded runs, FSDP2 and ZeRO-3, write none): files are compared with its "
            "weights, merged in fp32, and not with what it returned in training",
            run.path,
        )
    plain = probe.run(merged)
    layers = run.merge_into(merged)
    if layers is not None and probe.manifest:
        tolerance = UPDATE_TOLERANCE["fp32" if probe.exact else "bf16"]
        faults = manifest_faults(layers, probe.manifest, tolerance)
        if faults:
            raise RuntimeError(f"the run's weights are not those that it trained: {faults[0]}")
    checked = check_probe(probe, plain, probe.run(merged))
    if layers is not None and strength != 1:
        apply_layers(merged.denoiser, scaled(layers, strength - 1))
        layers = scaled(layers, strength)
    reference = Reference(run.model, run.load_base, probe, layers, plain, probe.run(merged), draw(merged))
    return reference, checked


def write_adapters(
    folder: Path,
    formats: Sequence[str],
    dtype: str,
    reference: Reference,
    merged: Backbone,
    header: Facts,
) -> dict[str, Facts]:
    """Write and prove adapter files; facts by file name."""
    files: dict[str, Facts] = {}
    layers = reference.layers
    for name in LORA_FORMATS:
        if layers is None or name not in formats:
            continue
        file = folder / (ADAPTER_FILE if name == "diffusers" else f"{header['title']}_{name}.safetensors")
        tensors = to_dtype(lora_tensors(layers, merged.denoiser, name), DTYPES[dtype])
        save_file(tensors, file, lora_header(layers, tensors, merged.denoiser, **header))
        files[file.name] = {"format": name, **prove_adapter(file, name, dtype, layers, reference)}
        logger.info("%s: proven, output differs by %.1e", file.name, files[file.name]["max_abs_diff"])
        gc.collect()
    return files


def write_merged(
    folder: Path, formats: Sequence[str], dtype: str, reference: Reference, merged: Backbone, header: Facts
) -> dict[str, Facts]:
    """Write and prove the merged pipeline, as a folder and as a single file; facts by name."""
    files: dict[str, Facts] = {}
    merged.pipeline.to(DTYPES[dtype])
    if "merged" in formats:
        path = folder / "merged"
        merged.pipeline.save_pretrained(path, safe_serialization=True)
        files["merged"] = {"format": "merged", **prove_merged(path, None, dtype, reference, merged)}
    if "single-file" in formats:
        path = folder / f"{header['title']}.safetensors"
        write_single_file(merged.pipeline, path, model_header(merged.denoiser, **header))
        config = str(folder / "merged") if "merged" in formats else reference.model
        files[path.name] = {"format": "single-file", **prove_merged(path, config, dtype, reference, merged)}
    return files


def describe(
    folder: Path,
    files: dict[str, Facts],
    dtype: str,
    strength: float,
    reference: Reference,
    probe: Facts | None,
) -> Facts:
    """export.json: every file with its proof, and the largest difference of all."""
    for name, facts in files.items():
        path = folder / name
        parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
        facts["bytes"] = sum(part.stat().st_size for part in parts)
    first, worst = next(iter(files)), max(files.values(), key=lambda facts: facts["max_abs_diff"])
    return {
        "file": first,
        "bytes": files[first]["bytes"],
        "max_abs_diff": worst["max_abs_diff"],
        "tolerance": worst["tolerance"],
        "dtype": dtype,
        "strength": strength,
        "rank": None if reference.layers is None else max(layer.rank for layer in reference.layers.values()),
        "picture_sha256": picture_hash(reference.picture),
        "training_probe": probe,
        "files": files,
    }
