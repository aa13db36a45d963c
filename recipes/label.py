"""Label a pool of prompt-image pairs for harmfulness, with nobody's labels: one process or many.

    accelerate launch --config_file launch/cpu_ddp.yaml recipes/label.py --data runs/pool --hgr runs/hgr/hgr

`safetune label DATA --hgr DIR` is the same in one process. Writes part-NNNNN.parquet, labels.json,
rejected.parquet and report.html to DATA/labels or --out. Run it again and it goes on where it stopped.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from accelerate import Accelerator

from safetune.backbone import load_backbone
from safetune.config import parse_config
from safetune.hgr import HGR
from safetune.labeling.harm import CalibrationOptions
from safetune.labeling.labeler import Labeler, LabelOptions, Workers, label_pairs
from safetune.labeling.pictures import read_pictures
from safetune.labeling.scoring import ScoreOptions
from safetune.latents import native_resolution
from safetune.launching import check_world_size
from safetune.pairs import Kind, Limits, open_pairs
from safetune.precision import resolve_dtype
from safetune.reporting.label_report import write_label_report

logger = logging.getLogger("label")


@dataclass(frozen=True)
class LabelConfig:
    data: str
    """Pool: image folder with metadata.jsonl, folder of parquet files or of tars, a pattern such as
    data/{00000..00010}.tar, or a hub name."""
    hgr: Path
    """Folder of the trained redirector."""
    model: str = "tinysd"
    """Base model that the redirector belongs to: "tinysd", a folder in diffusers layout, or a hub name."""
    out: Path | None = None
    """Folder of the labels; DATA/labels by default."""
    kind: Kind = "pairs"
    """What is scored of each row: pairs; prompts, by the text alone; or images, without their captions."""
    text_column: str = "text"
    """Column of the captions."""
    image_column: str = "image"
    """Column of the pictures (parquet, hub), or their extension in a tar."""
    key_column: str | None = None
    """Column of names for the rows; file names or row numbers by default."""
    split: str = "train"
    """Split of a data set of the hub."""
    streaming: bool = False
    """Read a data set of the hub without downloading it first."""
    resolution: int | None = None
    """Pixels a side that pictures are scaled and cut to; the model's own by default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base model; auto takes what the hardware is fast in."""
    exhaustive: bool = False
    """Score every pair with every concept at every timestep; the default spends passes where a pair is
    undecided."""
    batch_size: int = 8
    """Pairs in one call of the denoiser, which takes several rows for each."""
    shard_size: int = 256
    """Rows per shard: what an interrupted run may lose."""
    seed: int = 0
    """Seed of the noise draws."""
    clean_below: float = 0.4
    """Pairs with harm at or below are labelled clean."""
    harmful_above: float = 0.6
    """Pairs with harm at or above are labelled harmful; those between are uncertain."""
    known: Path | None = None
    """A handful of pairs that you labelled: .csv or .parquet with the columns key and label (clean, harmful)."""
    precision: float | None = None
    """Share of the harmful labels that should be right by the known ones; moves harmful_above."""
    max_pixels: int = Limits.max_pixels
    """Pictures with more pixels are rejected before they are decoded."""
    max_characters: int = Limits.max_characters
    """Longer captions are rejected."""
    strict: bool = False
    """Stop at the first row that cannot be scored, instead of recording it in rejected.parquet."""

    def __post_init__(self) -> None:
        if (self.known is None) != (self.precision is None):
            raise ValueError(
                "--known FILE and --precision SHARE go together: one tells nothing without the other"
            )
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ValueError(f"precision {self.precision}: give more than 0, at most 1")
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.clean_below <= self.harmful_above <= 1:
            raise ValueError(
                f"clean_below {self.clean_below}, harmful_above {self.harmful_above}: give 0 <= clean_below <= "
                "harmful_above <= 1"
            )


def main() -> None:
    config = parse_config(LabelConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = Accelerator()
    check_world_size(accelerator)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    device = accelerator.device
    try:
        folder = config.out or default_folder(config.data)
        source = open_pairs(
            config.data, text_column=config.text_column, image_column=config.image_column,
            key_column=config.key_column, split=config.split, streaming=config.streaming, kind=config.kind,
        )  # fmt: skip
        known = read_known(config.known) if config.known else None
        hgr = HGR.from_pretrained(config.hgr).eval().requires_grad_(False).to(device)
        backbone = load_backbone(config.model, device, resolve_dtype(config.dtype, device))
        resolution = config.resolution or native_resolution(backbone)
        labeler = Labeler(
            backbone,
            hgr,
            LabelOptions(
                config.kind,
                resolution,
                config.shard_size,
                config.image_column,
                config.key_column,
                config.split,
            ),
            ScoreOptions(exhaustive=config.exhaustive, batch_size=config.batch_size, seed=config.seed),
            Limits(max_pixels=config.max_pixels, max_characters=config.max_characters),
            config.strict,
        )
        summary = label_pairs(
            labeler,
            source,
            folder,
            CalibrationOptions(config.clean_below, config.harmful_above, config.precision),
            Workers(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone),
            known,
        )
    except (ValueError, FileNotFoundError) as mistake:
        raise SystemExit(f"label: {mistake}") from None
    if accelerator.is_main_process:
        page = write_label_report(folder, lambda keys: read_pictures(source, keys))
        print(summary_table(summary))
        print(f"labels in {folder}; open {page}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def default_folder(data: str) -> Path:
    """Labels beside a folder of data; anything else has no place of its own."""
    if not Path(data).is_dir():
        raise ValueError(f"{data} is no folder to put the labels in: give --out FOLDER")
    return Path(data) / "labels"


def read_known(path: Path) -> pd.Series:
    """Truth (bool, True is harmful) by key of the pairs that the user labelled."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
    if not {"key", "label"} <= set(frame.columns) or not frame.label.isin(["clean", "harmful"]).all():
        raise ValueError(f"{path}: the columns key and label are needed, a label is clean or harmful")
    return pd.Series((frame.label == "harmful").to_numpy(), index=frame.key.astype(str))


def summary_table(summary: dict[str, Any]) -> str:
    """What came of the rows, in a few lines."""
    lines = [f"{name:>12} {count}" for name, count in summary["labels"].items()]
    for title in ("rejected", "converted"):
        reasons = summary[title]
        if reasons:
            lines.append(f"{title:>12} {sum(reasons.values())}")
            lines += [f"{'':>14}{count} {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
