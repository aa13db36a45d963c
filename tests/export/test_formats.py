"""Names of the original layouts: by hand, and as diffusers' own converters map them back."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

from safetune.backbone import load_backbone
from safetune.export.formats import fuse, lora_tensors, original_layers, split_layers
from safetune.export.layers import LoraLayer, scaled
from safetune.export.names import attended_blocks, mmdit_name, unet_name

BLOCK = "transformer_blocks.0"
ATTENDED = {"up_blocks.1", "up_blocks.2", "up_blocks.3"}
SD15 = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": f"input_blocks.1.1.{BLOCK}.attn1.to_q",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": f"middle_block.1.{BLOCK}.ff.net.0.proj",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    f"up_blocks.3.attentions.2.{BLOCK}.attn2.to_q": f"output_blocks.11.1.{BLOCK}.attn2.to_q",
    "conv_out": "out.2",
}
"""Modules of Stable Diffusion 1.5, whose blocks have two layers, in CompVis' names."""


@pytest.mark.parametrize("path", SD15)
def test_names_of_sd15(path: str) -> None:
    assert unet_name(path, 2, ATTENDED) == SD15[path]


def test_a_module_without_a_name() -> None:
    with pytest.raises(ValueError, match=r"encoder\.layer has no name in the original layout"):
        unet_name("encoder.layer", 2, ATTENDED)


def test_names_of_sd3() -> None:
    name = mmdit_name("transformer_blocks.3.attn.add_k_proj")
    assert (name.path, name.part, name.fused) == ("joint_blocks.3.context_block.attn.qkv", 1, True)
    assert mmdit_name("transformer_blocks.3.ff.net.2").path == "joint_blocks.3.x_block.mlp.fc2"
    assert mmdit_name("norm_out.linear") is None


@pytest.mark.parametrize("added", [None, "text_time"])
def test_diffusers_maps_every_weight_back(added: str | None) -> None:
    more = {} if added is None else {"addition_embed_type": added, "addition_time_embed_dim": 8}
    more |= {} if added is None else {"projection_class_embeddings_input_dim": 96}
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        **more,
    )
    weights = unet.state_dict()
    names = {key: unet_name(key, 2, attended_blocks(weights)) for key in weights}
    original = {f"model.diffusion_model.{names[key]}": value for key, value in weights.items()}
    back = convert_ldm_unet_checkpoint(original, dict(unet.config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def layer(rank: int, seed: int, width: int = 3, height: int = 2) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    return LoraLayer(
        torch.randn(rank, width, generator=generator), torch.randn(height, rank, generator=generator)
    )


def test_a_fused_layer_holds_its_thirds() -> None:
    query, value = layer(2, 0), layer(1, 1)
    both = fuse({2: value, 0: query})
    assert both.rank == 3
    expected = torch.cat([query.delta(), torch.zeros(2, 3), value.delta()])
    torch.testing.assert_close(both.delta(), expected)


def test_sd3_layers_come_back(tiny_sd3: Path) -> None:
    denoiser = load_backbone(tiny_sd3).denoiser
    layers = {
        "transformer_blocks.0.attn.to_q": layer(2, 0, 32, 32),
        "transformer_blocks.0.attn.to_v": layer(2, 1, 32, 32),
        "transformer_blocks.1.ff.net.2": layer(2, 2, 128, 32),
    }
    fused = original_layers(layers, denoiser)
    assert set(fused) == {"joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.x_block.mlp.fc2"}
    back = split_layers(fused, denoiser)
    assert set(back) == set(layers)
    for name, expected in layers.items():
        torch.testing.assert_close(back[name].delta(), expected.delta())
    keys = lora_tensors(layers, denoiser, "kohya")
    assert float(keys["lora_unet_joint_blocks_0_x_block_attn_qkv.alpha"]) == 4
    with pytest.raises(ValueError, match=r"norm_out\.linear has no name"):
        lora_tensors({"norm_out.linear": layer(2, 0)}, denoiser, "comfyui")


def test_diffusers_maps_every_sd3_block_back(tiny_sd3: Path) -> None:
    weights = load_backbone(tiny_sd3).denoiser.state_dict()
    others = {
        "pos_embed": "pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
    }
    others |= {"final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear"}
    for short, long in (("t", "timestep"), ("y", "text")):
        for place, number in ((0, 1), (2, 2)):
            others[f"{short}_embedder.mlp.{place}"] = f"time_text_embed.{long}_embedder.linear_{number}"
    for index in (0, 1):
        ours, theirs = f"transformer_blocks.{index}", f"joint_blocks.{index}"
        for side, norm, added in (("x_block", "norm1", ""), ("context_block", "norm1_context", "added_")):
            others[f"{theirs}.{side}.adaLN_modulation.1"] = f"{ours}.{norm}.linear"
            for letter in "qk":
                others[f"{theirs}.{side}.attn.ln_{letter}"] = f"{ours}.attn.norm_{added}{letter}"
    original = {"pos_embed": weights["pos_embed.pos_embed"]}
    for theirs, module in others.items():
        for kind in ("weight", "bias"):
            if f"{module}.{kind}" in weights:
                original[f"{theirs}.{kind}"] = weights[f"{module}.{kind}"]
    named, thirds = [], {}
    for key, value in weights.items():
        module, _, kind = key.rpartition(".")
        name = mmdit_name(module)
        if name is not None:
            named.append(key)
            thirds.setdefault(f"{name.path}.{kind}", {})[name.part] = value
    original |= {key: torch.cat([parts[part] for part in sorted(parts)]) for key, parts in thirds.items()}
    back = convert_sd3_transformer_checkpoint_to_diffusers(original)
    assert len(named) == 42
    assert all(torch.equal(back[key], weights[key]) for key in named)


def test_a_layer_by_hand() -> None:
    plain = LoraLayer(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]]))
    weight = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(plain.applied(weight), torch.tensor([[3.0, 6.0], [0.0, 2.0]]))
    assert plain.norm() == pytest.approx(45**0.5)
    dora = LoraLayer(plain.down, plain.up, magnitude=torch.tensor([45**0.5, 1.0]))
    torch.testing.assert_close(dora.applied(weight), torch.tensor([[3.0, 6.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="a DoRA adapter has no strength but 1"):
        scaled({"a": dora}, 0.5)
