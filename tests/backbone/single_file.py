"""A Stable Diffusion 1.x in the original layout: one file, as A1111 and ComfyUI read it."""

import re
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

UNET_PARTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "down_blocks": "down",
}


def write_single_file(folder: Path, file: Path) -> None:
    """Rename and save the weights of a pipeline whose UNet has one layer in each block."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    unet, vae, text = (m.state_dict() for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    attended = {key.split(".attentions")[0] for key in unet if ".attentions" in key}
    renamed: dict[str, Tensor] = {}
    for key, value in unet.items():
        renamed[f"model.diffusion_model.{unet_name(key, attended)}"] = value
    for key, value in vae.items():
        square = "mid_block.attentions" in key and value.dim() == 2
        renamed[f"first_stage_model.{vae_name(key)}"] = value[:, :, None, None] if square else value
    for key, value in text.items():
        renamed[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in renamed.items()}, file)


def unet_name(key: str, attended: set[str]) -> str:
    for ours, theirs in UNET_PARTS.items():
        if key.startswith(ours + "."):
            return key.replace(ours, theirs, 1)
    if "resnets" in key:
        for ours, theirs in RESNET_PARTS.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.*)", key):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "downsamplers":
            return f"input_blocks.{2 * block + 2}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{2 * block + layer + 1}.{int(kind == 'attentions')}.{rest}"
    if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.*)", key):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "upsamplers":
            return f"output_blocks.{2 * block + 1}.{1 + (f'up_blocks.{block}' in attended)}.{rest}"
        return f"output_blocks.{2 * block + layer}.{int(kind == 'attentions')}.{rest}"
    key = key.replace("mid_block.resnets.0", "middle_block.0").replace(
        "mid_block.resnets.1", "middle_block.2"
    )
    return key.replace("mid_block.attentions.0", "middle_block.1")


def vae_name(key: str) -> str:
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.", key):
        key = key.replace(f"up_blocks.{match[1]}", f"up.{2 - int(match[1])}")
    for ours, theirs in VAE_PARTS.items():
        key = key.replace(ours, theirs)
    return key
