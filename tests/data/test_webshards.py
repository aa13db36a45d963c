"""Tars in the webdataset layout, equal bytes for equal samples."""

import tarfile
from pathlib import Path

from datasets import load_dataset

from safetune.data.webshards import Sample, write_shard
from tests.data.web import JPEG, PNG

SAMPLES = [
    Sample("000000000", PNG, "png", "größe", {"url": "http://a/1.png"}),
    Sample("000000002", JPEG, "jpg", "", {"url": "http://a/2.jpg"}),
]


def test_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar", SAMPLES)
    with tarfile.open(tmp_path / "00000.tar") as tar:
        names = tar.getnames()
        assert names == [f"{s.key}.{end}" for s in SAMPLES for end in (s.extension, "txt", "json")]
        assert tar.extractfile(names[0]).read() == PNG
        assert tar.extractfile(names[1]).read().decode() == "größe"
    write_shard(tmp_path / "again.tar", SAMPLES)
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "00000.tar").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"00000.tar", "again.tar"}


def test_datasets_reads_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000-png.tar", SAMPLES[:1])
    files = {"train": [str(tmp_path / "00000-png.tar")]}
    dataset = load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["__key__"] == "000000000"
    assert dataset[0]["txt"] == "größe" and dataset[0]["json"] == {"url": "http://a/1.png"}
    assert dataset[0]["png"].size == (32, 32)
