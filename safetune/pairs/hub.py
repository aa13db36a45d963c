"""Data sets of the hub through `datasets`, whole or as a stream, as arrow tables, nothing decoded."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Image, IterableDataset, config, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi, constants

from safetune.pairs.records import Record, Wanted
from safetune.pairs.tables import BATCH_ROWS, check_schema, columns_of, records_of

NOT_DOWNLOADED = "picture is the name of a file that was not downloaded: read the data set without streaming"


class HubDataset:
    """A split of a data set of the hub."""

    def __init__(self, name: str, wanted: Wanted, split: str, streaming: bool):
        self.name, self.wanted = name, wanted
        try:
            dataset = load_dataset(name, split=split, streaming=streaming)
        except (DatasetNotFoundError, DatasetGenerationError, OSError, ValueError) as error:
            raise ValueError(
                f"{name} is neither a file or folder here nor a data set of the hub that can be read, with a "
                f"split {split!r}: {error}"
            ) from None
        self.fresh = dataset
        check_schema(name, schema_of(dataset), wanted)
        dataset = dataset.select_columns(columns_of(wanted))
        if wanted.image and isinstance((dataset.features or {}).get(wanted.image_column), Image):
            dataset = dataset.cast_column(wanted.image_column, Image(decode=False))
        self.dataset = dataset.with_format("arrow")

    @cached_property
    def fingerprint(self) -> str:
        """That of `datasets`, which follows the files; of a stream, the commit on the hub."""
        if isinstance(self.fresh, IterableDataset):
            return str(HfApi().dataset_info(self.name).sha)
        return str(self.fresh._fingerprint)

    @cached_property
    def length(self) -> int | None:
        if not isinstance(self.fresh, IterableDataset):
            return len(self.fresh)
        splits = self.fresh.info.splits or {}
        return splits[self.fresh.split].num_examples if self.fresh.split in splits else None

    def __iter__(self) -> Iterator[Record]:
        row = 0
        for table in self.dataset.iter(batch_size=BATCH_ROWS):
            for batch in table.to_batches():
                yield from records_of(batch, row, self.wanted, downloaded, NOT_DOWNLOADED)
                row += batch.num_rows


def schema_of(dataset: Dataset | IterableDataset) -> pa.Schema:
    """Columns and their types; of a stream that does not tell them, those of its first row."""
    if dataset.features is not None:
        return dataset.features.arrow_schema
    first = next(iter(dataset.with_format("arrow").iter(batch_size=1)), None)
    return pa.schema([]) if first is None else first.schema


def downloaded(name: str) -> Path | None:
    """A file in the caches of the hub and of `datasets`; None for others: strangers chose the name."""
    path = Path(name)
    roots = (constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE)
    return path if ".." not in path.parts and any(path.is_relative_to(root) for root in roots) else None
