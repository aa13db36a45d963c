"""A LoRA of a full fine-tune: exact at full rank, with its error below it, and ready for export."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from safetune.export import export_run
from safetune.export.extraction import extract_adapter, low_rank, truncated
from tests.export.runs import write_run


def test_the_largest_singular_values_are_kept() -> None:
    change = torch.diag(torch.tensor([4.0, 0.0, 2.0]))
    torch.testing.assert_close(truncated(change, 1).delta(), torch.diag(torch.tensor([4.0, 0.0, 0.0])))
    wide = truncated(change, 5)
    assert wide.rank == 5
    torch.testing.assert_close(wide.delta(), change)


def test_error_by_hand() -> None:
    base, trained = (
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
    )
    trained.load_state_dict(base.state_dict())
    trained[0].weight.data += torch.diag(torch.tensor([4.0, 2.0]))
    trained[1].bias.data += torch.tensor([0.0, 4.0])
    layers, lost = low_rank(base, trained, 1)
    assert set(layers) == {"0"}
    # Squares: 16 + 4 in the weight, 16 in the bias; 4 and the bias are lost.
    assert lost["error"] == pytest.approx((20 / 36) ** 0.5)
    assert lost["worst_layer"] == "0" and lost["worst_error"] == pytest.approx((4 / 20) ** 0.5)


def test_a_convolution() -> None:
    change = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = truncated(change, 3)
    assert layer.down.shape == (3, 2, 3, 3) and layer.up.shape == (3, 3, 1, 1)
    torch.testing.assert_close(layer.applied(torch.zeros_like(change)), change)


def test_weights_that_did_not_change() -> None:
    with pytest.raises(ValueError, match="nothing to extract"):
        low_rank(nn.Sequential(layer := nn.Linear(2, 2)), nn.Sequential(layer), 1)


@pytest.mark.slow
def test_more_rank_loses_less_and_exports(tmp_path: Path, tiny_pipeline: Path) -> None:
    run = write_run(tmp_path / "run", tiny_pipeline, "full")
    lost = {rank: extract_adapter(run, tmp_path / f"rank{rank}", rank) for rank in (2, 16)}
    assert 0 < lost[16]["error"] < lost[2]["error"] < 1
    assert 0 < lost[16]["output_error"] < lost[2]["output_error"]
    facts = export_run(tmp_path / "rank16", tmp_path / "out", ["diffusers", "kohya"])
    assert facts["rank"] == 16 and facts["max_abs_diff"] < 1e-5
    assert "extracted" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="rank 0: give 1 or more"):
        extract_adapter(run, tmp_path / "other", 0)
    with pytest.raises(ValueError, match="give --force"):
        extract_adapter(run, tmp_path / "rank2", 2)


@pytest.mark.slow
def test_a_dora_becomes_a_lora(tmp_path: Path, tiny_pipeline: Path) -> None:
    run = write_run(tmp_path / "run", tiny_pipeline, "dora")
    lost = extract_adapter(run, tmp_path / "lora", 64)
    assert lost["error"] < 1e-4
    assert json.loads((tmp_path / "lora" / "run.json").read_text())["config"]["method"] == "lora"
    assert export_run(tmp_path / "lora", tmp_path / "out", ["kohya"])["max_abs_diff"] < 1e-5
