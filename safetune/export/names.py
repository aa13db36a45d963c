"""Names of modules in the original layouts, which ComfyUI, A1111 and sd-scripts use.

UNets follow CompVis' latent-diffusion (ldm) and Stability's generative-models (sgm), SD 3 its own reference
code, which keeps query, key and value in one weight. diffusers' single-file converters map them back; the
proofs and tests compare with those.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from diffusers import ModelMixin, SD3Transformer2DModel
from torch import nn

RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_PARTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MMDIT_PARTS = {
    "attn.to_q": ("x_block.attn.qkv", 0),
    "attn.to_k": ("x_block.attn.qkv", 1),
    "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.add_q_proj": ("context_block.attn.qkv", 0),
    "attn.add_k_proj": ("context_block.attn.qkv", 1),
    "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn2.to_q": ("x_block.attn2.qkv", 0),
    "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2),
    "attn.to_out.0": ("x_block.attn.proj", 0),
    "attn.to_add_out": ("context_block.attn.proj", 0),
    "attn2.to_out.0": ("x_block.attn2.proj", 0),
    "ff.net.0.proj": ("x_block.mlp.fc1", 0),
    "ff.net.2": ("x_block.mlp.fc2", 0),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", 0),
    "ff_context.net.2": ("context_block.mlp.fc2", 0),
}


@dataclass(frozen=True)
class OriginalName:
    """A module's place in the original layout."""

    path: str
    part: int = 0
    """Which third of a fused query-key-value weight; 0 for a weight of its own."""

    @property
    def fused(self) -> bool:
        return self.path.endswith(".qkv")


def original_names(denoiser: ModelMixin) -> dict[str, OriginalName]:
    """Original names of the modules that have one and can carry a LoRA, by path."""
    paths = [n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if isinstance(denoiser, SD3Transformer2DModel):
        return {path: name for path in paths if (name := mmdit_name(path)) is not None}
    layers, attended = denoiser.config.layers_per_block, attended_blocks(paths)
    return {path: OriginalName(unet_name(path, layers, attended)) for path in paths}


def attended_blocks(paths: Iterable[str]) -> set[str]:
    """Blocks with cross attention, whose upsampler stands one place later."""
    return {path.split(".attentions.")[0] for path in paths if ".attentions." in path}


def unet_name(path: str, layers_per_block: int, attended: set[str]) -> str:
    """Path of a UNet's module or parameter, renamed as ldm numbers blocks."""
    for ours, theirs in UNET_PARTS.items():
        if path == ours or path.startswith(ours + "."):
            return theirs + path.removeprefix(ours)
    match = re.match(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.?(.*)", path)
    if match is None or (match[1] != "mid_block") != (match[2] is not None):
        raise ValueError(f"{path} has no name in the original layout")
    side, block, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        for ours, theirs in RESNET_PARTS.items():
            if rest == ours or rest.startswith(ours + "."):
                rest = theirs + rest.removeprefix(ours)
                break
    if side == "mid_block":
        return f"middle_block.{2 * layer if kind == 'resnets' else 2 * layer + 1}.{rest}"
    if side == "down_blocks":
        first = 1 + block * (layers_per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.op{rest.removeprefix('conv')}"
        return f"input_blocks.{first + layer}.{int(kind == 'attentions')}.{rest}"
    first = block * (layers_per_block + 1)
    if kind == "upsamplers":
        place = 1 + (f"up_blocks.{block}" in attended)
        return f"output_blocks.{first + layers_per_block}.{place}.{rest}"
    return f"output_blocks.{first + layer}.{int(kind == 'attentions')}.{rest}"


def mmdit_name(path: str) -> OriginalName | None:
    """Place of a module of SD 3's blocks; None outside of what MMDIT_PARTS lists."""
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", path)
    if match is None or match[2] not in MMDIT_PARTS:
        return None
    name, part = MMDIT_PARTS[match[2]]
    return OriginalName(f"joint_blocks.{match[1]}.{name}", part)
