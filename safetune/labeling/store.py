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

    def first(self, number: int) -> Path:
        """Raw scores of a shard's first round; written last, so that it marks the shard as finished."""
        return self.scores / f"first-{number:05d}.parquet"

    def second(self, number: int) -> Path:
        """Raw scores of a shard's undecided pairs."""
        return self.scores / f"second-{number:05d}.parquet"

    def rejected(self, number: int) -> Path:
        """Rows of a shard that could not be scored, or only after a conversion."""
        return self.scores / f"rejected-{number:05d}.parquet"

    def check(self, facts: dict[str, Any]) -> None:
        """ValueError when the folder holds scores that depend on other facts."""
        check_settings(self.scores / "scores.json", facts)

    def claim(self, facts: dict[str, Any]) -> None:
        """Write what the scores depend on."""
        write_json(self.scores / "scores.json", facts)

    def write_first(
        self, number: int, frame: pd.DataFrame, rejected: list[tuple[str, int, str, bool]]
    ) -> None:
        """Write a shard's first round."""
        table = pd.DataFrame(rejected, columns=list(REJECTED)).astype(REJECTED)
        write_parquet(table, self.rejected(number))
        write_parquet(frame, self.first(number))

    def write_second(self, number: int, frame: pd.DataFrame) -> None:
        """Write a shard's second round."""
        write_parquet(frame, self.second(number))

    def write_undecided(self, shards: int, mask: np.ndarray) -> None:
        """Write which pairs get a second round: the numbers of their rows."""
        rows = self._column(shards, "row")[mask]
        write_parquet(pd.DataFrame({"row": rows}), self.scores / "undecided.parquet")

    def undecided(self) -> frozenset[int]:
        """Row numbers of the pairs that get a second round."""
        path = self.scores / "undecided.parquet"
        return frozenset(pd.read_parquet(path).row) if path.is_file() else frozenset()

    def keys(self, shards: int) -> pd.Series:
        """Keys of all pairs, in order."""
        return pd.Series(self._column(shards, "key"), dtype="string")

    def reader(self, shards: int) -> Reader:
        """Reads columns of all shards, whichever round they are of."""

        def read(names: list[str]) -> Floats:
            chunks = [np.zeros((0, len(names)), np.float32)]
            for number in range(shards):
                file = pq.ParquetFile(self.first(number))
                rows = file.read(columns=["row"]).to_pandas().row
                values = np.full((len(rows), len(names)), np.nan, np.float32)
                if names[0] in file.schema_arrow.names:
                    values = file.read(columns=names).to_pandas()[names].to_numpy(np.float32)
                elif self.second(number).is_file():
                    found = pd.read_parquet(self.second(number), columns=["row", *names])
                    values[np.searchsorted(rows, found.row)] = found[names].to_numpy(np.float32)
                chunks.append(values)
            return np.concatenate(chunks)

        return read

    def write_labels(self, shards: int, labels: pd.DataFrame) -> pd.DataFrame:
        """Write the labels shard by shard, captions beside them, and rejected.parquet, which it returns."""
        start = 0
        for number in range(shards):
            text = pd.read_parquet(self.first(number), columns=["text"]).text
            part = labels.iloc[start : start + len(text)].reset_index(drop=True)
            part.insert(1, "text", text)
            write_parquet(part, self.folder / f"part-{number:05d}.parquet")
            start += len(text)
        rejected = pd.concat([pd.read_parquet(self.rejected(n)) for n in range(shards)], ignore_index=True)
        write_parquet(rejected, self.folder / "rejected.parquet")
        return rejected

    def _column(self, shards: int, name: str) -> np.ndarray:
        return np.concatenate(
            [pd.read_parquet(self.first(number), columns=[name])[name].to_numpy() for number in range(shards)]
        )
