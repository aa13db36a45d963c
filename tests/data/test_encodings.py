"""Tensors by name in shards, and names that hang on the content and the model."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.conditioning import Conditioning
from safetune.data import encodings
from safetune.data.encodings import (
    Encoder,
    PromptRows,
    TensorStore,
    deviation,
    encoder_of,
    prompt_tensors,
    read_encoded,
)


def test_store(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "new", "latents")
    store.add({})
    assert not (tmp_path / "new").exists()
    store.add({"a": torch.zeros(2), "b": torch.ones(2)})
    store.add({"c": torch.full((2,), 2.0)})
    again = TensorStore(tmp_path / "new", "latents")
    assert "a" in again and "c" in again and "d" not in again
    assert again.read(["c", "a", "c", "b"])[:, 0].tolist() == [2.0, 0.0, 2.0, 1.0]
    again.add({"d": torch.full((2,), 3.0)})
    names = {f"latents-{number:05d}.safetensors" for number in range(3)}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert "a" not in TensorStore(tmp_path / "new", "prompts")
    with pytest.raises(KeyError):
        again.read(["e"])


def test_half_a_shard_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "latents-00000.tmp").write_bytes(b"half a shard")
    store = TensorStore(tmp_path, "latents")
    store.add({"a": torch.zeros(1)})
    assert store.read(["a"]).shape == (1, 1)


def test_names_hang_on_content_and_model(tiny_pipeline: Path, tiny_sd2: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    encoder = encoder_of(backbone, 64)
    assert encoder == encoder_of(load_backbone(tiny_pipeline), 64)
    assert encoder.latent_name(b"a") != encoder.latent_name(b"b")
    assert encoder.prompt_name("a") != encoder.prompt_name("b")
    for other in (
        encoder_of(backbone, 32),
        encoder_of(load_backbone(tiny_pipeline, dtype=torch.bfloat16), 64),
        encoder_of(load_backbone(tiny_sd2), 64),
    ):
        assert encoder.latent_name(b"a") != other.latent_name(b"a")
    assert encoder.prompt_name("a") == encoder_of(backbone, 32).prompt_name("a")
    assert encoder.prompt_name("a") != encoder_of(load_backbone(tiny_sd2), 64).prompt_name("a")
    assert Encoder("", "").prompt_name("a") == (
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # sha256 of "a"
    )


def test_rows_of_conditioning() -> None:
    batch = Conditioning(torch.arange(12.0).view(2, 3, 2), mask=torch.tensor([[1, 1, 0], [1, 0, 0]]))
    tensors = prompt_tensors(["x", "y"], batch)
    assert set(tensors) == {"x.embeds", "x.mask", "y.embeds", "y.mask"}
    assert tensors["y.embeds"].tolist() == [[6, 7], [8, 9], [10, 11]] and tensors["x.mask"].tolist() == [
        1,
        1,
        0,
    ]


def test_nothing_cached(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no cached pairs"):
        read_encoded(tmp_path)


def test_rows_of_a_store(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "latents")
    store.add({"a": torch.zeros(2), "b": torch.ones(2)})
    store.add({"c": torch.full((3,), 2.0)})
    rows = store.rows(["b", "c", "b"])
    assert rows.read([2, 0])[:, 0].tolist() == [1.0, 1.0] and rows.row(1).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(KeyError):
        store.rows(["d"])


def test_spread_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five prompts of two tokens and width one; of three rows only every second prompt counts."""
    tokens = torch.tensor([[1.0, 3.0], [9.0, 9.0], [5.0, 7.0], [9.0, 9.0], [9.0, 11.0]])
    store = TensorStore(tmp_path, "prompts")
    store.add({str(row): values.unsqueeze(1) for row, values in enumerate(tokens)})
    rows = store.rows(map(str, range(5)))
    assert deviation(rows, range(5), batch_size=2).tolist() == pytest.approx([tokens.std().item()])
    monkeypatch.setattr(encodings, "SPREAD_ROWS", 3)
    spread = PromptRows({"embeds": rows}).spread()
    assert spread.embeds.item() == pytest.approx((70 / 5) ** 0.5) and spread.pooled is None
