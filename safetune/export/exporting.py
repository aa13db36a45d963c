"""`safetune export`: from a run folder to a folder that any diffusers user loads."""

import json
import shutil
from pathlib import Path

from safetune.backbone.loading import resolve_model
from safetune.export.card import model_card
from safetune.export.verification import PROBE_FILE, probe_difference
from safetune.files import ADAPTER_FILE, replace_folder, write_json

FORMATS = ("diffusers",)
TOLERANCE = 1e-5


def export_run(
    run: Path, out: Path, formats: tuple[str, ...] = FORMATS, force: bool = False
) -> dict[str, object]:
    """Export a fine-tuning run's adapter and prove it; returns facts (file, bytes, max_abs_diff).

    The exported file is loaded by diffusers into a fresh pipeline and its output compared with that of the
    trained weights. Raises ValueError for bad arguments and RuntimeError on a mismatch; nothing is left then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"format {', '.join(unknown)}; allowed: {', '.join(FORMATS)}")
    source = run / "adapter" / ADAPTER_FILE
    if not source.is_file() or not (run / "run.json").is_file():
        raise ValueError(f"{run} is no finished fine-tuning run: {source} and run.json are needed")
    if out.exists() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} is not empty; give --force to replace it")
    facts_of_run = json.loads((run / "run.json").read_text())
    with replace_folder(out) as temporary:
        shutil.copyfile(source, temporary / ADAPTER_FILE)
        base = resolve_model(facts_of_run["config"]["model"])
        difference = probe_difference(run / "adapter" / PROBE_FILE, temporary / ADAPTER_FILE, base)
        if difference > TOLERANCE:
            raise RuntimeError(f"the exported adapter differs from the trained one by {difference:.2e}")
        facts: dict[str, object] = {
            "file": ADAPTER_FILE,
            "bytes": (temporary / ADAPTER_FILE).stat().st_size,
            "max_abs_diff": difference,
            "tolerance": TOLERANCE,
        }
        write_json(temporary / "export.json", facts)
        (temporary / "README.md").write_text(model_card(facts_of_run, facts), encoding="utf-8")
    return facts
