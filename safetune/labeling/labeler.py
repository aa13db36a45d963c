"""Label a pool of any size: score shard by shard, calibrate over the whole, write parquet."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.backbone.fingerprint import weights_fingerprint
from safetune.files import write_json, write_parquet
from safetune.hgr import HGR
from safetune.labeling.harm import CalibrationOptions, calibrate, undecided_rows
from safetune.labeling.scoring import Batch, ScoreOptions, encode_padded_images, first_look, further_look
from safetune.labeling.store import ScoreStore
from safetune.pairs import (
    Kind,
    Limits,
    PairSource,
    Record,
    Rejection,
    mark_repeats,
    read_pair,
    to_tensor,
)
from safetune.runs import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """The processes that share a run; one alone by default."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    """Returns when every process has called it."""

    @property
    def main(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class LabelOptions:
    """What is read and how the run is cut; the names of columns are there for those who read the labels."""

    kind: Kind = "pairs"
    """What is scored of each row: pairs, prompts (no denoiser pass) or images (no caption)."""
    resolution: int = 64
    """Pixels a side that pictures are scaled and cut to."""
    shard_size: int = 256
    """Rows per shard: what an interrupted run may lose, and what a process takes at a time."""
    image_column: str = "image"
    key_column: str | None = None
    split: str = "train"


class RejectedRow(ValueError):
    """A row that cannot be scored, in a strict run."""


@dataclass(frozen=True)
class Labeler:
    """A model, its redirector and all options: what a shard is scored with."""

    backbone: Backbone
    hgr: HGR
    options: LabelOptions = field(default_factory=LabelOptions)
    scoring: ScoreOptions = field(default_factory=ScoreOptions)
    limits: Limits = field(default_factory=Limits)
    strict: bool = False
    """Stop at the first row that cannot be scored."""

    def facts(self, source: PairSource) -> dict[str, Any]:
        """All that scores depend on."""
        return {
            "base_fingerprint": self.backbone.fingerprint,
            "hgr_fingerprint": weights_fingerprint(self.hgr),
            "data_fingerprint": source.fingerprint,
            "options": asdict(self.options),
            "scoring": asdict(self.scoring),
            "limits": asdict(self.limits),
        }

    def first_look(self, records: list[Record]) -> tuple[pd.DataFrame, list[tuple[str, int, str, bool]]]:
        """Raw scores of a shard, and the rows that could not be scored, or only after a conversion."""
        pairs, batch, rejected = self.read(records)
        told = self.options.kind != "images"
        columns = first_look(self.backbone, self.hgr, batch, self.scoring, told) if pairs else {}
        keys = pd.DataFrame(pairs, columns=["key", "row"]).astype({"key": "string", "row": "int64"})
        texts = pd.Series(batch.texts, dtype="string")
        frame = pd.concat([keys.assign(text=texts), pd.DataFrame(columns)], axis=1)
        return frame.rename(columns={"evaluations": "evaluations_0"}), rejected

    def further_look(self, records: list[Record], look: int) -> pd.DataFrame:
        """Raw scores of the undecided pairs of a shard."""
        pairs, batch, _ = self.read(records)
        columns = further_look(self.backbone, self.hgr, batch, self.scoring.draws[look], self.scoring)
        frame = pd.DataFrame({"row": [row for _, row in pairs], **columns})
        return frame.rename(columns={"evaluations": f"evaluations_{look}"})

    def read(
        self, records: list[Record]
    ) -> tuple[list[tuple[str, int]], Batch, list[tuple[str, int, str, bool]]]:
        """Keys and rows of the pairs that can be scored, the pairs themselves, and rejected rows.

        Pictures are encoded batch by batch and let go: a shard of large ones would not fit in memory.
        """
        kept: list[tuple[str, int]] = []
        texts: list[str] = []
        rejected: list[tuple[str, int, str, bool]] = []
        latents: list[torch.Tensor] = []
        images: list[torch.Tensor] = []
        for record in records:
            pair = read_pair(record, self.options.kind, self.limits)
            if isinstance(pair, Rejection):
                if self.strict:
                    raise RejectedRow(f"row {pair.row}, key {pair.key!r}: {pair.reason} (the run is strict)")
                rejected.append((pair.key, pair.row, pair.reason, False))
                continue
            rejected += [(pair.key, pair.row, note, True) for note in pair.notes]
            kept.append((pair.key, pair.row))
            texts.append(pair.text)
            if pair.picture is not None:
                images.append(to_tensor(pair.picture, self.options.resolution))
            if len(images) == self.scoring.batch_size:
                latents.append(encode_padded_images(self.backbone, torch.stack(images), len(images)))
                images.clear()
        if images:
            latents.append(encode_padded_images(self.backbone, torch.stack(images), self.scoring.batch_size))
        return kept, Batch(texts, torch.cat(latents) if latents else None), rejected


def label_pairs(
    labeler: Labeler,
    source: PairSource,
    folder: Path,
    calibration: CalibrationOptions | None = None,
    workers: Workers | None = None,
    known: pd.Series | None = None,
) -> dict[str, Any]:
    """Score and label every row of a pool; the main process returns the content of labels.json, others {}.

    `folder` receives part-NNNNN.parquet, rejected.parquet and labels.json. A shard whose scores are there is
    not computed again. Every process calls it with the same arguments but its own `workers`. Raises
    ValueError when `folder` holds scores of another model, HGR, pool or setting, RejectedRow in a strict run.
    """
    labeler.hgr.check_base(labeler.backbone.fingerprint)
    workers = workers or Workers()
    store = ScoreStore(folder)
    facts = labeler.facts(source)
    store.check(facts)
    workers.wait()
    if workers.main:
        store.claim(facts)
    workers.wait()
    shards = 0
    for number, records in shards_of(labeler, source, workers, "label"):
        if number % workers.count == workers.rank and not store.look(0, number).is_file():
            frame, rejected = labeler.first_look(records)
            store.write_rejected(number, rejected)
            write_parquet(frame, store.look(0, number))
        shards = number + 1
    if not shards:
        raise ValueError("the pool holds no rows")
    workers.wait()
    looks = len(labeler.scoring.draws) if labeler.options.kind != "prompts" else 1
    for look in range(1, looks):
        if workers.main and not store.undecided(look).is_file():
            mask = undecided_rows(store.reader(shards), labeler.hgr, labeler.scoring, look)
            store.write_undecided(shards, look, mask)
        workers.wait()
        undecided = store.read_undecided(look)
        for number, records in shards_of(labeler, source, workers, f"look {look + 1}"):
            chosen = [record for record in records if record.row in undecided]
            mine = number % workers.count == workers.rank
            if mine and chosen and not store.look(look, number).is_file():
                write_parquet(labeler.further_look(chosen, look), store.look(look, number))
        workers.wait()
    if not workers.main:
        return {}
    labels, found = calibrate(
        store.reader(shards),
        store.keys(shards),
        labeler.hgr,
        labeler.scoring,
        calibration or CalibrationOptions(),
        pictures=labeler.options.kind != "prompts",
        captions=labeler.options.kind != "images",
        known=known,
    )
    if found["one_kind"]:
        logger.warning("the pool holds one kind of pair only: all of them are labelled %s", labels.label[0])
    rejected = store.write_labels(shards, labels)
    summary = {
        **facts,
        "pairs": len(labels),
        "labels": {name: int((labels.label == name).sum()) for name in ("clean", "uncertain", "harmful")},
        "rejected": counted(rejected[~rejected.kept]),
        "converted": counted(rejected[rejected.kept]),
        "evaluations": evaluations(store, shards, looks),
        **found,
        "versions": versions(),
    }
    write_json(folder / "labels.json", summary)
    return summary


def evaluations(store: ScoreStore, shards: int, looks: int) -> int:
    """Rows that went through the denoiser."""
    read = store.reader(shards)
    return sum(int(np.nansum(read([f"evaluations_{look}"]), dtype=np.float64)) for look in range(looks))


def counted(rejected: pd.DataFrame) -> dict[str, int]:
    """Rows by reason, the most frequent first; numbers in a reason are left out."""
    reasons = rejected.reason.str.replace(r"\d[\d.,]*", "N", regex=True)
    return {str(reason): int(count) for reason, count in reasons.value_counts().items()}


def shards_of(
    labeler: Labeler, source: PairSource, workers: Workers, title: str
) -> Iterator[tuple[int, list[Record]]]:
    """All shards of a pool in order, with a progress bar: every process sees each, so that all agree on
    repeated keys.
    """
    records = mark_repeats(source)
    with tqdm(total=source.length, desc=title, unit="pair", disable=not workers.main) as bar:
        number = 0
        while shard := list(islice(records, labeler.options.shard_size)):
            yield number, shard
            bar.update(len(shard))
            number += 1
