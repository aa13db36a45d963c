"""Merged models in one file, in the original layout of SD 1.x and SDXL, as A1111 and ComfyUI read them.

diffusers reads that layout and does not write it (0.42), so the names are here; what is written counts only
after diffusers' from_single_file has read the same weights back.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from safetune.export.headers import family_of
from safetune.export.names import attended_blocks, unet_name

VAE_PARTS = {
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "down_blocks": "down",
}
OPEN_CLIP_PARTS = {
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
}
OPEN_CLIP = "conditioner.embedders.1.model."


def check_single_file(denoiser: nn.Module, model: str, formats: Sequence[str]) -> None:
    """ValueError for a family that has no such layout here, and where nothing holds the configuration."""
    family = family_of(denoiser)
    if family not in ("sd1", "sdxl"):
        raise ValueError(
            f"format single-file is for SD 1.x and SDXL, this model is {family}: export it as merged"
        )
    if Path(model).suffix == ".safetensors" and "merged" not in formats:
        raise ValueError(
            f"format single-file: the base model {model} has no configuration to read the file with; give "
            "merged,single-file"
        )


def write_single_file(pipeline: DiffusionPipeline, file: Path, header: dict[str, str]) -> None:
    """Write the UNet, autoencoder and text encoders of a pipeline."""
    unet = pipeline.unet.state_dict()
    layers, attended = pipeline.unet.config.layers_per_block, attended_blocks(unet)
    tensors = {f"model.diffusion_model.{unet_name(k, layers, attended)}": value for k, value in unet.items()}
    tensors |= vae_tensors(pipeline.vae.state_dict())
    text = pipeline.text_encoder.state_dict()
    if family_of(pipeline.unet) == "sd1":
        tensors |= clip_tensors(text, "cond_stage_model.transformer.text_model.")
    else:
        tensors |= clip_tensors(text, "conditioner.embedders.0.transformer.text_model.")
        tensors |= open_clip_tensors(pipeline.text_encoder_2.state_dict())
    # Embeddings of a text encoder may share memory; a file holds each tensor once.
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, file, header)


def vae_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's weights: up blocks count backwards, attention is 1 x 1 convolutions."""
    last = max(int(match[1]) for key in weights if (match := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    tensors = {}
    for key, value in weights.items():
        square = "mid_block.attentions" in key and value.dim() == 2
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", key)
        for ours, theirs in VAE_PARTS.items():
            name = name.replace(ours, theirs)
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if square else value
    return tensors


def clip_tensors(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder's weights, which keep transformers' names."""
    return {prefix + key.removeprefix("text_model."): value for key, value in weights.items()}


def open_clip_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SDXL's second text encoder by OpenCLIP's names: fused query-key-value, a transposed projection."""
    tensors: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key == "text_projection.weight":
            tensors[f"{OPEN_CLIP}text_projection"] = value.T
            continue
        name = key.removeprefix("text_model.")
        if re.search(r"self_attn\.[qkv]_proj\.", name):
            fused = re.sub(r"self_attn\.[qkv]_proj\.", "attn.in_proj_", name)
            fused = OPEN_CLIP + fused.replace("encoder.layers", "transformer.resblocks")
            thirds = [weights[re.sub(r"[qkv]_proj", f"{part}_proj", key)] for part in "qkv"]
            tensors[fused] = torch.cat(thirds)
            continue
        for ours, theirs in OPEN_CLIP_PARTS.items():
            name = name.replace(ours, theirs)
        tensors[OPEN_CLIP + name] = value
    return tensors
