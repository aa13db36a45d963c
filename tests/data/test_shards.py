"""Rows on disk: read one by one, written once, shared between processes."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from safetune.data.shards import Place, Rows, Shards, stacked_rows

ALONE = SimpleNamespace(
    process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None
)


def fill(shards: Shards, numbers: list[int]) -> None:
    """Row i is full of i, and has i + 1 columns where i is even."""
    for number in numbers:
        rows = shards.rows(number)
        shards.write(number, {f"{row}.x": torch.full((1, 1 + row % 2), float(row)) for row in rows})


def test_rows_of_named_and_of_stacked_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, tmp_path / "named")
    save_file({"latents": torch.tensor([[5.0, 6.0], [7.0, 8.0], [9.0, 9.0]])}, tmp_path / "stacked")
    named = Rows([Place(tmp_path / "named", "b"), Place(tmp_path / "named", "a")])
    rows = named + stacked_rows([tmp_path / "stacked"])
    assert len(rows) == 5 and len(named) == 2
    expected = [[7.0, 8.0], [3.0, 4.0], [7.0, 8.0]]
    assert rows.read([3, 0, 3]).tolist() == expected
    assert rows.read(torch.tensor([3, 0, 3])).tolist() == expected
    assert rows.select([3, 1]).read(range(2)).tolist() == [[7.0, 8.0], [1.0, 2.0]]
    assert rows.shape(0) == (2,) and rows.shape(4) == (2,)


def test_what_was_read_may_be_changed(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "file")
    rows = Rows([Place(tmp_path / "file", "a")])
    rows.read([0]).add_(1)
    assert rows.read([0]).tolist() == [[0.0, 0.0]]


def test_an_interrupted_run_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "x", 5, size=2)
    assert shards.claim(ALONE, {"seed": 0}) == [0, 1, 2]
    fill(shards, [0, 2])
    (tmp_path / "x" / "part-00001.tmp").write_bytes(b"half a shard")
    assert shards.claim(ALONE, {"seed": 0}) == [1]
    fill(shards, [1])
    assert shards.claim(ALONE, {"seed": 0}) == []
    assert shards.names() == {"x"}
    rows = shards.read("x")
    assert [rows.row(row)[0, 0].item() for row in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [rows.shape(row) for row in range(3)] == [(1, 1), (1, 2), (1, 1)]
    with pytest.raises(ValueError, match=r"seed was 0, is 1\. Give another --output_dir"):
        shards.claim(ALONE, {"seed": 1})
    with pytest.raises(ValueError, match="rows was 5, is 6"):
        Shards(tmp_path / "x", 6, size=2).claim(ALONE, {"seed": 0})


def test_processes_share_the_missing_shards(tmp_path: Path) -> None:
    barrier, claimed = threading.Barrier(2), {}

    def process(rank: int) -> None:
        told = SimpleNamespace(
            process_index=rank, num_processes=2, is_main_process=rank == 0, wait_for_everyone=barrier.wait
        )
        claimed[rank] = Shards(tmp_path, 10, size=2).claim(told, {})

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert claimed == {0: [0, 2, 4], 1: [1, 3]}
