"""Parquet files: pictures in every shape, text that is not text, files that are cut short."""

import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image, Value
from pyarrow import parquet

from safetune.pairs import Limits, Pair, Record, Rejection, open_pairs, read_pair
from tests.pairs.damaged import content_of

IMAGE = content_of("sound")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def invalid_text(*values: bytes | None) -> pa.Array:
    """Strings of these bytes, as a writer that does not check leaves them."""
    return pa.array(values, pa.binary()).view(pa.string())


def write(path: Path, **columns: pa.Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


def test_pictures_as_datasets_writes_them(tmp_path: Path) -> None:
    features = Features({"image": Image(), "text": Value("string")})
    rows = {"image": [{"bytes": IMAGE, "path": None}] * 70, "text": [f"cat {n}" for n in range(70)]}
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    source = open_pairs(tmp_path)
    assert source.length == 70
    assert list(source) == [Record(n, str(n), f"cat {n}".encode(), IMAGE) for n in range(70)]
    assert list(source) == list(source)
    assert isinstance(read_pair(next(iter(source)), "pairs", Limits()), Pair)


def test_every_shape_of_a_picture_and_of_text(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(IMAGE)
    struct = pa.array([{"bytes": IMAGE, "path": "a.png"}, {"bytes": None, "path": "b.png"}, None], STRUCT)
    texts = pa.array(["a", "b", None])
    for number, (image, text) in enumerate(
        [
            (struct, texts),
            (pa.array([IMAGE, IMAGE, None], pa.large_binary()), texts.cast(pa.large_string())),
            (pa.array([IMAGE, IMAGE, None], pa.binary()), texts.dictionary_encode()),
            (pa.array(["b.png", "b.png", None]), texts.cast(pa.binary())),
        ]
    ):
        path = write(tmp_path / f"{number}" / "a.parquet", image=image, text=text)
        (path.parent / "b.png").write_bytes(IMAGE)
        records = list(open_pairs(path))
        assert [record.text for record in records] == [b"a", b"b", None]
        results = [read_pair(record, "images", Limits()) for record in records]
        assert [isinstance(result, Pair) for result in results] == [True, True, False]
        assert results[2] == Rejection(2, "2", "picture is missing")


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    images = pa.array([IMAGE] * 3)
    keys = invalid_text(b"a", b"b\xff", None)
    write(tmp_path / "a.parquet", image=images, text=invalid_text(b"a", b"caf\xe9", b"c"), id=keys)
    results = [read_pair(record, "pairs", Limits()) for record in open_pairs(tmp_path, key_column="id")]
    assert isinstance(results[0], Pair)
    assert results[1:] == [
        Rejection(1, "b\\xff", "caption is not UTF-8"),
        Rejection(2, "2", "key is missing"),
    ]


def test_names_of_pictures_stay_in_the_folder(tmp_path: Path) -> None:
    names = pa.array(["../a.png", "/etc/a.png", "none.png"])
    write(tmp_path / "a.parquet", image=names, text=pa.array(["a"] * 3))
    results = [read_pair(record, "pairs", Limits()) for record in open_pairs(tmp_path)]
    outside = "picture's path points outside the folder"
    assert [result.reason for result in results if isinstance(result, Rejection)] == [
        outside,
        outside,
        "picture's file is missing",
    ]


def test_whole_numbers_are_keys(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", text=pa.array(["a", "b"]), id=pa.array([7, 8]))
    assert [record.key for record in open_pairs(tmp_path, kind="prompts", key_column="id")] == ["7", "8"]


def test_files_follow_one_another_and_a_damaged_one_costs_itself(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.parquet", text=pa.array([f"{name}0", f"{name}1"]))
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "c.parquet", caption=pa.array(["c0"]))
    source = open_pairs(tmp_path, kind="prompts")
    assert [(record.row, record.key, record.text) for record in source] == [
        (0, "0", b"a0"),
        (1, "1", b"a1"),
        (2, "b.parquet", None),
        (3, "c.parquet", None),
        (4, "4", b"d0"),
        (5, "5", b"d1"),
    ]
    assert [record.defect for record in source][2:4] == [
        "parquet file is damaged or cut short: its rows from here on are lost",
        "c.parquet has no column 'text'; its columns: caption",
    ]


def test_damaged_pages_cost_the_rest_of_their_file(tmp_path: Path) -> None:
    texts = [f"{n:08d}" * 200 for n in range(4_000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.table({"text": texts}), path, row_group_size=1_000, use_dictionary=False, compression="zstd"
    )
    content = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 4_000] = b"\xff" * 4_000
    path.write_bytes(content)
    records = list(open_pairs(path, kind="prompts"))
    assert [record.text for record in records[:-1]] == [text.encode() for text in texts[: len(records) - 1]]
    assert records[-1].row == len(records) - 1 <= 2_000
    assert records[-1].defect == "parquet file is damaged or cut short: its rows from here on are lost"


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    image = content_of("sound") + bytes(20_000)
    batch = pa.table({"image": pa.array([image] * 500), "text": pa.array(["a"] * 500)})
    for count in (1, 4):
        with parquet.ParquetWriter(tmp_path / f"{count}.parquet", batch.schema) as writer:
            for _ in range(count):
                writer.write_table(batch)
    peaks = []
    for count in (1, 4):
        tracemalloc.start()
        assert sum(1 for _ in open_pairs(tmp_path / f"{count}.parquet")) == 500 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 4 * 32 * len(image)


def test_columns_that_are_not_there_or_hold_something_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array([[1, 2]]), text=pa.array([1.5]))
    with pytest.raises(ValueError, match="has no column 'caption'; its columns: image, text"):
        open_pairs(path, text_column="caption")
    with pytest.raises(ValueError, match=r"column 'text' of .* holds double; allowed: text"):
        open_pairs(path)
    with pytest.raises(ValueError, match=r"column 'image' of .* holds list.*; allowed: pictures as"):
        open_pairs(path, kind="images")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"has no parquet file that can be read; damaged: a.parquet"):
        open_pairs(path)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=pa.array(["a"]))
    seen = [open_pairs(path, kind="prompts").fingerprint]
    assert open_pairs(tmp_path, kind="prompts").fingerprint == seen[0]
    os.utime(path, ns=(0, 0))
    seen.append(open_pairs(tmp_path, kind="prompts").fingerprint)
    write(tmp_path / "b.parquet", text=pa.array(["a"]))
    seen.append(open_pairs(tmp_path, kind="prompts").fingerprint)
    assert len(set(seen)) == 3
