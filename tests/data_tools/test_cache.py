"""Encodings of a data set: what the backbone gives, and each picture and prompt only once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_tools import cache
from safetune.backbone import load_backbone
from safetune.backbone.frozen import FrozenPipeline
from safetune.data.encodings import read_encoded
from safetune.pairs import image_tensor, load_pairs, write_pairs
from tests.data.pictures import draw_picture

Run = Callable[..., Path]


def write_pool(folder: Path, seeds: list[int]) -> Path:
    write_pairs(folder, map(draw_picture, seeds), [{"text": f"picture {seed % 4}"} for seed in seeds])
    return folder


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Six pictures, the first one twice, under four captions."""
    return write_pool(tmp_path / "pool", [0, 1, 2, 3, 4, 0])


@pytest.fixture
def run(tmp_path: Path, tiny_pipeline: Path) -> Run:
    def call(data: Path, *more: str, model: Path = tiny_pipeline) -> Path:
        out = tmp_path / "out"
        words = ["--out", str(out), "--model", str(model), "--dtype", "float32", "--shard-size", "2", *more]
        assert cache.main([str(data), *words]) == 0
        return out

    return call


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pictures and prompts a backbone encodes."""
    counts = {"encode_images": 0, "encode_prompts": 0}
    for name in counts:
        real = getattr(FrozenPipeline, name)

        def count(
            self: object, batch: object, name: str = name, real: Callable[..., object] = real
        ) -> object:
            counts[name] += len(batch)
            return real(self, batch)

        monkeypatch.setattr(FrozenPipeline, name, count)
    return counts


@pytest.mark.parametrize("name", ["tiny_pipeline", "tiny_sdxl", "tiny_sd3"])
def test_cached_is_uncached(name: str, run: Run, pool: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    encoded = read_encoded(run(pool, model=model))
    backbone, dataset = load_backbone(model), load_pairs(pool)
    expected = backbone.encode_prompts(dataset["text"])
    close = {"atol": 1e-5, "rtol": 1e-5}  # other batches are rounded otherwise
    torch.testing.assert_close(encoded.latents, backbone.encode_images(image_tensor(dataset, 64)), **close)
    torch.testing.assert_close(encoded.prompts.embeds, expected.embeds, **close)
    assert (encoded.prompts.pooled is None) == (expected.pooled is None)
    if expected.pooled is not None:
        torch.testing.assert_close(encoded.prompts.pooled, expected.pooled, **close)
    assert encoded.texts == list(dataset["text"]) and len(encoded.keys) == 6


def test_each_picture_and_prompt_once(
    run: Run, pool: Path, counted: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(pool)
    assert counted == {"encode_images": 5, "encode_prompts": 4}
    assert "encoded now: 5 pictures and 4 prompts; 0 rows" in capsys.readouterr().out
    before = read_encoded(out)
    run(pool)
    write_pool(pool, [5, 0, 1, 2, 3, 4])
    run(pool)
    assert counted == {"encode_images": 6, "encode_prompts": 4}
    after = read_encoded(out)
    assert torch.equal(after.latents[1:], before.latents[:5])
    facts = json.loads((out / "cache.json").read_text())
    assert facts["pairs"] == 6 and facts["encoded_now"] == {"pictures": 1, "prompts": 0}


def test_another_resolution_is_another_encoding(run: Run, pool: Path, counted: dict[str, int]) -> None:
    run(pool)
    out = run(pool, "--resolution", "32")
    assert counted == {"encode_images": 10, "encode_prompts": 4}
    assert read_encoded(out).latents.shape == (6, 4, 8, 8)


def test_an_interrupted_run_goes_on(
    run: Run, pool: Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = cache.TensorStore.add

    def dying(store: cache.TensorStore, tensors: dict[str, torch.Tensor]) -> None:
        if store.kind == "prompts" and store.places:
            raise KeyboardInterrupt
        add(store, tensors)

    monkeypatch.setattr(cache.TensorStore, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        run(pool)
    monkeypatch.setattr(cache.TensorStore, "add", add)
    counted.update(encode_images=0, encode_prompts=0)
    assert read_encoded(run(pool)).latents.shape == (6, 4, 16, 16)
    assert counted == {"encode_images": 1, "encode_prompts": 2}


def test_rows_that_cannot_be_used_are_counted(run: Run, pool: Path) -> None:
    (pool / "000001.png").write_bytes(b"no picture")
    (pool / "000002.png").unlink()
    out = run(pool)
    facts = json.loads((out / "cache.json").read_text())
    assert facts["pairs"] == 4 and sum(facts["rejected"].values()) == 2
    assert read_encoded(out).keys == ["000000.png", "000003.png", "000004.png", "000005.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resolution", "30"], "--resolution 30: give a multiple of 4"),
        (["--shard-size", "0"], "--shard-size 0: give 1 or more"),
        (["--text-column", "caption"], "caption"),
    ],
)
def test_mistakes(
    more: list[str], message: str, pool: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run(pool, *more)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
