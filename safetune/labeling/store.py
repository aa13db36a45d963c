"""The files of a labelling run: raw scores by shard, then the labels; each is moved into place whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from safetune.files import check_settings, write_json, write_parquet
from safetune.labeling.harm import Floats, Reader

REJECTED = {"key": "string", "row": "int64", "reason": "string", "kept": "bool"}
"""Columns of rejected.parquet; a row that is `kept` was converted, its picture is scored."""


class ScoreStore:
    """labels/scores/ holds what runs need to go on, labels/ what others read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scores = folder, folder / "scores"

    def look(self, look: int, number: int) -> Path:
        """Raw scores of a shard at a look; those of look 0 are written last, and mark the shard as read."""
        return self.scores / f"look{look}-{number:05d}.parquet"

    def undecided(self, look: int) -> Path:
        """Row numbers of the pairs that get a look."""
        return self.scores / f"undecided{look}.parquet"

    def rejected(self, number: int) -> Path:
        """Rows of a shard that could not be scored, or only after a conversion."""
        return self.scores / f"rejected-{number:05d}.parquet"

    def check(self, facts: dict[str, Any]) -> None:
        """ValueError when the folder holds scores that depend on other facts."""
        check_settings(self.scores / "scores.json", facts)

    def claim(self, facts: dict[str, Any]) -> None:
        """Write what the scores depend on."""
        write_json(self.scores / "scores.json", facts)

    def write_rejected(self, number: int, rejected: list[tuple[str, int, str, bool]]) -> None:
        """Write a shard's rejected rows."""
        table = pd.DataFrame(rejected, columns=list(REJECTED)).astype(REJECTED)
        write_parquet(table, self.rejected(number))

    def write_undecided(self, shards: int, look: int, mask: np.ndarray) -> None:
        """Write which pairs get a look."""
        write_parquet(pd.DataFrame({"row": self._column(shards, "row")[mask]}), self.undecided(look))

    def read_undecided(self, look: int) -> frozenset[int]:
        """Row numbers of the pairs that get a look."""
        return frozenset(pd.read_parquet(self.undecided(look)).row.tolist())

    def keys(self, shards: int) -> pd.Series:
        """Keys of all pairs, in order."""
        return pd.Series(self._column(shards, "key"), dtype="string")

    def reader(self, shards: int) -> Reader:
        """Reads columns of all shards, of the look that has them."""

        def read(names: list[str]) -> Floats:
            chunks = [np.zeros((0, len(names)), np.float32)]
            for number in range(shards):
                rows = pd.read_parquet(self.look(0, number), columns=["row"]).row
                values = np.full((len(rows), len(names)), np.nan, np.float32)
                for path in sorted(self.scores.glob(f"look*-{number:05d}.parquet")):
                    if names[0] in pq.read_schema(path).names:
                        found = pd.read_parquet(path, columns=["row", *names])
                        values[np.searchsorted(rows, found.row)] = found[names].to_numpy(np.float32)
                chunks.append(values)
            return np.concatenate(chunks)

        return read

    def write_labels(self, shards: int, labels: pd.DataFrame) -> pd.DataFrame:
        """Write the labels shard by shard, captions beside them, and rejected.parquet, which it returns."""
        start = 0
        for number in range(shards):
            text = pd.read_parquet(self.look(0, number), columns=["text"]).text
            part = labels.iloc[start : start + len(text)].reset_index(drop=True)
            part.insert(1, "text", text)
            write_parquet(part, self.folder / f"part-{number:05d}.parquet")
            start += len(text)
        rejected = pd.concat([pd.read_parquet(self.rejected(n)) for n in range(shards)], ignore_index=True)
        write_parquet(rejected, self.folder / "rejected.parquet")
        return rejected

    def _column(self, shards: int, name: str) -> np.ndarray:
        return np.concatenate(
            [
                pd.read_parquet(self.look(0, number), columns=[name])[name].to_numpy()
                for number in range(shards)
            ]
        )
