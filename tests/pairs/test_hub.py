"""Data sets of the hub: `load_dataset` is a stub that reads local files, all else is that of `datasets`."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from safetune.pairs import Limits, Pair, Record, Rejection, hub, open_pairs, read_pair
from tests.pairs.damaged import content_of

IMAGE = content_of("sound")
Stub = Callable[[Path], None]


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A function after which owner/pool holds the parquet files of a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def publish(folder: Path) -> None:
        def load_dataset(name: str, split: str, streaming: bool) -> object:
            assert name == "owner/pool"
            files = {"train": sorted(map(str, folder.glob("*.parquet")))}
            return datasets.load_dataset(
                "parquet",
                data_files=files,
                split=split,
                streaming=streaming,
                cache_dir=str(tmp_path / "cache"),
            )

        monkeypatch.setattr(hub, "load_dataset", load_dataset)

    return publish


def write_rows(path: Path, count: int, **columns: pa.Array) -> None:
    """Rows as the hub stores them, with the type of pictures in the file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    image = pa.array([{"bytes": IMAGE, "path": None}] * count, features["image"].pa_type)
    texts = pa.array([f"cat {n}" for n in range(count)])
    table = pa.table({"image": image, "text": texts, **columns})
    parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_in_order_with_their_pictures_as_bytes(
    tmp_path: Path, on_the_hub: Stub, streaming: bool
) -> None:
    write_rows(tmp_path / "hub" / "0.parquet", 40)
    write_rows(tmp_path / "hub" / "1.parquet", 3)
    on_the_hub(tmp_path / "hub")
    source = open_pairs("owner/pool", streaming=streaming)
    numbers = [*range(40), *range(3)]
    expected = [Record(row, str(row), f"cat {n}".encode(), IMAGE) for row, n in enumerate(numbers)]
    assert list(source) == expected
    assert list(source) == expected
    assert source.length in ((43,) if not streaming else (None, 43))
    assert isinstance(read_pair(expected[0], "pairs", Limits()), Pair)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_cost_themselves(tmp_path: Path, on_the_hub: Stub, streaming: bool) -> None:
    image = pa.array(
        [
            {"bytes": IMAGE, "path": None},
            {"bytes": IMAGE, "path": None},
            {"bytes": None, "path": "/etc/passwd"},
            {"bytes": None, "path": str(tmp_path / "cache" / ".." / "a.png")},
            None,
        ],
        datasets.Image().pa_type,
    )
    text = pa.array([b"a", b"caf\xe9", b"c", b"d", b"e"], pa.binary()).view(pa.string())
    write_rows(tmp_path / "hub" / "0.parquet", 5, image=image, text=text)
    on_the_hub(tmp_path / "hub")
    results = [
        read_pair(record, "pairs", Limits()) for record in open_pairs("owner/pool", streaming=streaming)
    ]
    assert isinstance(results[0], Pair)
    assert results[1:] == [
        Rejection(1, "1", "caption is not UTF-8"),
        Rejection(2, "2", hub.NOT_DOWNLOADED),
        Rejection(3, "3", hub.NOT_DOWNLOADED),
        Rejection(4, "4", "picture is missing"),
    ]


def test_pictures_that_datasets_downloaded_as_files(tmp_path: Path, on_the_hub: Stub) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.png").write_bytes(IMAGE)
    path = {"bytes": None, "path": str(tmp_path / "cache" / "a.png")}
    image = pa.array([path], datasets.Image().pa_type)
    write_rows(tmp_path / "hub" / "0.parquet", 1, image=image)
    on_the_hub(tmp_path / "hub")
    (record,) = open_pairs("owner/pool")
    assert isinstance(read_pair(record, "pairs", Limits()), Pair)


def test_columns_and_splits_that_are_not_there(tmp_path: Path, on_the_hub: Stub) -> None:
    write_rows(tmp_path / "hub" / "0.parquet", 1)
    on_the_hub(tmp_path / "hub")
    with pytest.raises(ValueError, match="owner/pool has no column 'caption'; its columns: image, text"):
        open_pairs("owner/pool", text_column="caption")
    with pytest.raises(ValueError, match=r"column 'image' of owner/pool holds struct.*; allowed: text"):
        open_pairs("owner/pool", text_column="image", kind="prompts")
    with pytest.raises(ValueError, match="split 'nowhere'"):
        open_pairs("owner/pool", split="nowhere")


def test_a_name_that_is_nowhere() -> None:
    with pytest.raises(ValueError, match="nobody/nothing is neither a file or folder here nor a data"):
        open_pairs("nobody/nothing")


def test_the_fingerprint_follows_the_data(tmp_path: Path, on_the_hub: Stub) -> None:
    write_rows(tmp_path / "hub" / "0.parquet", 1)
    on_the_hub(tmp_path / "hub")
    before = open_pairs("owner/pool").fingerprint
    assert open_pairs("owner/pool").fingerprint == before
    write_rows(tmp_path / "hub" / "0.parquet", 2)
    assert open_pairs("owner/pool").fingerprint != before


def test_the_fingerprint_of_a_stream_is_the_commit(
    tmp_path: Path, on_the_hub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "hub" / "0.parquet", 1)
    on_the_hub(tmp_path / "hub")
    monkeypatch.setattr(
        hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=f"commit of {name}")
    )
    assert open_pairs("owner/pool", streaming=True).fingerprint == "commit of owner/pool"


def test_a_stream_that_does_not_tell_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a cat"}\n{"text": "a dog"}\n')
    path = str(tmp_path / "a.jsonl")
    stream = datasets.load_dataset("json", data_files=path, split="train", streaming=True)
    stream = stream.map(dict)
    assert stream.features is None
    monkeypatch.setattr(hub, "load_dataset", lambda name, split, streaming: stream)
    source = open_pairs("owner/pool", kind="prompts", streaming=True)
    assert [record.text for record in source] == [b"a cat", b"a dog"]
    with pytest.raises(ValueError, match="has no column 'image'; its columns: text"):
        open_pairs("owner/pool", streaming=True)
