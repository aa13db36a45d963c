import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safetune.backbone import Backbone, load_backbone
from safetune.evaluation.baselines.others import convert_others, load_others
from safetune.export.adapters import save_denoiser, save_layers
from safetune.export.layers import LoraLayer

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def trained(tiny_pipeline: Path) -> Backbone:
    """The tiny model with one layer doubled."""
    backbone = load_backbone(tiny_pipeline)
    with torch.no_grad():
        backbone.denoiser.get_parameter(f"{KEY}.weight").mul_(2)
    return backbone


def same(one: Backbone, other: Backbone) -> bool:
    weights = other.denoiser.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.denoiser.state_dict().items())


def test_pipeline_folder(trained: Backbone, tiny_pipeline: Path, tmp_path: Path) -> None:
    trained.pipeline.save_pretrained(tmp_path / "pipeline")
    assert same(load_others(tmp_path / "pipeline", "not read"), trained)
    assert convert_others(tmp_path / "pipeline", tmp_path / "out", str(tiny_pipeline)) == "pipeline"
    assert same(load_others(tmp_path / "out", str(tiny_pipeline)), trained)
    with torch.no_grad():
        for value in trained.pipeline.text_encoder.parameters():
            value.neg_()
    trained.pipeline.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="give it as --model"):
        convert_others(tmp_path / "encoder", tmp_path / "never", str(tiny_pipeline))
    assert not (tmp_path / "never").exists()


def test_unet_folder(trained: Backbone, tiny_pipeline: Path, tmp_path: Path) -> None:
    save_denoiser(trained.denoiser, tmp_path / "unet")
    assert same(load_others(tmp_path / "unet", str(tiny_pipeline)), trained)
    with pytest.raises(ValueError, match="of another architecture"):
        load_others(tmp_path / "unet", "tinysd")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    part = load_file(file)
    del part["conv_out.weight"]
    save_file(part, file)
    with pytest.raises(ValueError, match=r"missing: conv_out\.weight"):
        load_others(tmp_path / "unet", str(tiny_pipeline))


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_some_weights_in_one_file(
    trained: Backbone, tiny_pipeline: Path, tmp_path: Path, prefix: str
) -> None:
    file = tmp_path / "uce.safetensors"
    save_file({f"{prefix}{KEY}.weight": trained.denoiser.get_parameter(f"{KEY}.weight").data}, file)
    assert same(load_others(file, str(tiny_pipeline)), trained)
    assert convert_others(file, tmp_path / "out", str(tiny_pipeline)) == "weights"
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["kind"] == "weights" and facts["base"] == load_backbone(tiny_pipeline).fingerprint
    with pytest.raises(ValueError, match="is there already"):
        convert_others(file, tmp_path / "out", str(tiny_pipeline))


def test_weights_that_do_not_fit(
    tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load(**tensors: torch.Tensor) -> Backbone:
        file = tmp_path / "weights.safetensors"
        save_file({name.replace("__", "."): value.contiguous() for name, value in tensors.items()}, file)
        return load_others(file, str(tiny_pipeline))

    with pytest.raises(ValueError, match=r"no place for mid\.to_k\.weight; expected names such as"):
        load(mid__to_k__weight=torch.ones(2))
    with pytest.raises(ValueError, match=r"conv_out\.bias \(3,\), in the base \(4,\)"):
        load(conv_out__bias=torch.ones(3))
    with pytest.raises(ValueError, match=r"no numbers in conv_out\.bias"):
        load(conv_out__bias=torch.full((4,), torch.nan))
    with pytest.raises(ValueError, match="whole checkpoint as --model"):
        load(model__diffusion_model__out__weight=torch.ones(1))
    load(conv_out__bias=load_backbone(tiny_pipeline).denoiser.conv_out.bias.data)
    assert "nothing is changed" in caplog.text


def test_lora(tiny_pipeline: Path, tmp_path: Path) -> None:
    base = load_backbone(tiny_pipeline)
    old = base.denoiser.get_parameter(f"{KEY}.weight").clone()
    down, up = torch.full((1, old.shape[1]), 0.5), torch.full((old.shape[0], 1), 0.1)
    file = save_layers({KEY: LoraLayer(down, up)}, base.denoiser, tmp_path)
    found = load_others(file, str(tiny_pipeline)).denoiser.get_parameter(f"{KEY}.weight")
    assert torch.allclose(found, old + 0.05, atol=1e-6)
    stranger = {f"unet.nowhere.to_k.lora_{half}.weight": torch.ones(1, 1) for half in "AB"}
    save_file({**load_file(file), **stranger}, file)
    with pytest.raises(ValueError, match=r"no place for the key unet\.nowhere\.to_k"):
        load_others(file, str(tiny_pipeline))
    save_file(
        {f"lora_te_layer.lora_{half}.weight": torch.ones(1, 1) for half in ("up", "down")},
        tmp_path / "te.safetensors",
    )
    with pytest.raises(ValueError, match="no adapter of a denoiser"):
        load_others(tmp_path / "te.safetensors", str(tiny_pipeline))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth"])
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"esd{suffix}"
    file.write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"is a pickle.*weights_only=True.*esd\.safetensors"):
        load_others(file)
    with pytest.raises(ValueError, match="is a pickle"):
        load_others(tmp_path)  # a folder that holds nothing else


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds nothing: give a pipeline folder"):
        load_others(tmp_path)
    with pytest.raises(ValueError, match="that is there"):
        load_others(tmp_path / "absent.safetensors")
