"""What passes of the denoiser, the autoencoder and the text encoders hold, counted on the meta device."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from safetune.backbone.frozen import images_at_once
from safetune.estimation.tracking import LiveBytes, MetaKernels


def student_bytes(
    denoiser: Any,
    rows: int,
    latent: tuple[int, int, int],
    tokens: int,
    autocast: torch.dtype | None,
    on_cuda: bool,
    checkpointing: bool,
    gradients_held: bool = False,
) -> int:
    """Peak of a pass of `rows` latents (C, h, w), forward and back: activations, and gradients as they come.

    With `gradients_held` gradients lie there from an earlier pass, and are not counted.
    """
    inputs = denoiser_inputs(denoiser, rows, latent, tokens)
    kernels = MetaKernels(autocast, on_cuda)
    if checkpointing:
        # The second time a block is computed, within the way back, it needs the kernels once more.
        again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), kernels))
        denoiser.enable_gradient_checkpointing(again)
    trained = [param for param in denoiser.parameters() if param.requires_grad]
    for param in trained:
        param.grad = torch.empty_like(param) if gradients_held else None
    with LiveBytes() as counted:
        with kernels:
            output = denoiser(**inputs).sample
        loss = output.float().pow(2).mean()
        del output
        loss.backward()
    denoiser.disable_gradient_checkpointing()
    denoiser.zero_grad()
    return counted.peak


@torch.no_grad()
def teacher_bytes(
    denoiser: Any,
    rows: int,
    latent: tuple[int, int, int],
    tokens: int,
    autocast: torch.dtype | None,
    on_cuda: bool,
) -> int:
    """Peak of a forward pass without gradient."""
    inputs = denoiser_inputs(denoiser, rows, latent, tokens)
    with LiveBytes() as counted, MetaKernels(autocast, on_cuda):
        denoiser(**inputs)
    return counted.peak


@torch.no_grad()
def vae_bytes(vae: Any, resolution: int, decoding: bool) -> int:
    """Peak of the autoencoder on as many pictures as it is given at once, from pixels or to pixels."""
    count, side = images_at_once(resolution**2), resolution
    channels, way = 3, vae.encode
    if decoding:
        side //= 2 ** (len(vae.config.block_out_channels) - 1)
        channels, way = vae.config.latent_channels, vae.decode
    given = torch.empty(count, channels, side, side, dtype=vae.dtype, device="meta")
    with LiveBytes() as counted, MetaKernels(None, on_cuda=True):
        way(given)
    return counted.peak


@torch.no_grad()
def text_bytes(encoder: Any, rows: int, tokens: int) -> int:
    """Peak of a text encoder on `rows` prompts of `tokens` tokens each, all its hidden states returned."""
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    with LiveBytes() as counted, MetaKernels(None, on_cuda=True):
        encoder(ids, output_hidden_states=True)
    return counted.peak


def denoiser_inputs(denoiser: Any, rows: int, latent: tuple[int, int, int], tokens: int) -> dict[str, object]:
    """Inputs of that many rows, by the names that the denoiser's class gives them."""
    config, dtype = denoiser.config, denoiser.dtype
    noisy = torch.empty(rows, *latent, dtype=dtype, device="meta")
    timesteps = torch.empty(rows, dtype=torch.long, device="meta")
    if "joint_attention_dim" in config:
        return {
            "hidden_states": noisy,
            "timestep": timesteps,
            "encoder_hidden_states": noisy.new_empty(rows, tokens, config.joint_attention_dim),
            "pooled_projections": noisy.new_empty(rows, config.pooled_projection_dim),
        }
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": noisy.new_empty(rows, pooled), "time_ids": noisy.new_empty(rows, 6)}
    return {
        "sample": noisy,
        "timestep": timesteps,
        "encoder_hidden_states": noisy.new_empty(rows, tokens, config.cross_attention_dim),
        "added_cond_kwargs": added,
    }
