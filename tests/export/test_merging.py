"""Several adapters as one: exactly added by cat, by PEFT's other methods where they are asked for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safetune.backbone import load_backbone
from safetune.export import export_run
from safetune.export.adapters import read_layers
from safetune.export.layers import LoraLayer
from safetune.export.merging import METHODS, check_arguments, combine, merge_adapters
from safetune.files import ADAPTER_FILE
from tests.export.runs import write_run


def test_bad_arguments(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ValueError, match="2 adapters and 1 weights"):
        check_arguments(files, tmp_path / "out", [1.0], "cat", None, False)
    with pytest.raises(ValueError, match="method sum; allowed: cat, linear, svd, ties"):
        check_arguments(files, tmp_path / "out", [1.0, 1.0], "sum", None, False)
    with pytest.raises(ValueError, match="method ties needs --density"):
        check_arguments(files, tmp_path / "out", [1.0, 1.0], "ties", None, False)
    with pytest.raises(ValueError, match="method cat takes no density"):
        check_arguments(files, tmp_path / "out", [1.0, 1.0], "cat", 0.5, False)


def layers_of(seed: int) -> dict[str, LoraLayer]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)
    return {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": LoraLayer(down, up)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method(tiny_pipeline: Path, method: str) -> None:
    first, second = layers_of(0), layers_of(1)
    (name,) = first
    pruning = method not in ("cat", "linear", "svd")
    merged = combine(
        load_backbone(tiny_pipeline).denoiser,
        [first, second],
        [0.75, 0.25],
        method,
        0.9 if pruning else None,
        None,
    )
    assert set(merged) == {name}
    expected = 0.75 * first[name].delta() + 0.25 * second[name].delta()
    if method == "cat":
        assert merged[name].rank == 4
        torch.testing.assert_close(merged[name].delta(), expected)
    elif method == "svd":
        left, values, right = torch.linalg.svd(expected)
        torch.testing.assert_close(
            merged[name].delta(), left[:, :2] * values[:2] @ right[:2], atol=1e-4, rtol=1e-4
        )
    else:
        assert merged[name].rank == 2 and float(merged[name].delta().abs().max()) > 0.1


@pytest.mark.slow
def test_files_of_two_formats_become_one_run(tmp_path: Path, tiny_pipeline: Path) -> None:
    runs = [write_run(tmp_path / f"run{seed}", tiny_pipeline, seed=seed) for seed in (0, 1)]
    export_run(runs[1], tmp_path / "kohya", ["kohya"])
    files = [runs[0] / "adapter" / ADAPTER_FILE, tmp_path / "kohya" / "kohya_kohya.safetensors"]
    rank = merge_adapters(files, tmp_path / "both", str(tiny_pipeline), [0.5, -1.0])
    assert rank == 8
    denoiser = load_backbone(tiny_pipeline).denoiser
    first, second, both = (
        read_layers(folder / "adapter" / ADAPTER_FILE, denoiser) for folder in (*runs, tmp_path / "both")
    )
    for name, layer in both.items():
        expected = 0.5 * first[name].delta() - second[name].delta()
        torch.testing.assert_close(layer.delta(), expected, atol=1e-6, rtol=1e-5)
    assert export_run(tmp_path / "both", tmp_path / "out", ["comfyui"])["rank"] == 8
    assert json.loads((tmp_path / "both" / "run.json").read_text())["combined"]["weights"] == [0.5, -1.0]
    assert len(load_file(tmp_path / "both" / "adapter" / ADAPTER_FILE)) == 80
