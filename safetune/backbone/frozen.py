"""What the families share: frozen modules, prompts in chunks, the autoencoder, and letting both go."""

import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from safetune.backbone.fingerprint import weights_fingerprint
from safetune.conditioning import Conditioning, cat

logger = logging.getLogger(__name__)

PIXELS_AT_ONCE = 4 * 512 * 512
"""Pixels in one call of the autoencoder: four pictures of 512 a side."""


class FrozenPipeline(ABC):
    """A loaded pipeline, frozen; a family adds its prompts, its noise and its denoiser's call."""

    text_encoders: tuple[str, ...] = ("text_encoder",)
    prompts_at_once: ClassVar[int] = 256

    def __init__(self, pipeline: DiffusionPipeline, denoiser: Any) -> None:
        channels, latent = denoiser.config.in_channels, pipeline.vae.config.latent_channels
        if channels != latent:
            raise ValueError(
                f"the denoiser takes {channels} channels but latents have {latent}: inpainting and image-to-"
                "image models are not supported, give the text-to-image model they were made from"
            )
        self.pipeline = pipeline
        self.denoiser: nn.Module = denoiser
        self.dtype: torch.dtype = denoiser.dtype
        self.fingerprint = weights_fingerprint(denoiser)
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        # This halves the encoder's time in fp32 on a CPU. The decoder stays as it is: its pictures are those
        # of a plain pipeline, bit for bit.
        pipeline.vae.encoder.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        self._require("text_encoder")
        step = self.prompts_at_once
        parts = [list(prompts[start : start + step]) for start in range(0, len(prompts), step)]
        self._warn_of_cut_prompts(parts)
        return cat([self._encode(part) for part in parts])

    def null(self, batch: int = 1) -> Conditioning:
        return self.encode_prompts([""] * batch)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        with self._vae() as vae:
            shift = getattr(vae.config, "shift_factor", None)
            chunks = []
            for chunk in images.split(images_at_once(images.shape[2] * images.shape[3])):
                mean = vae.encode(chunk.to(self.device, vae.dtype)).latent_dist.mean
                chunks.append((mean - shift if shift else mean) * vae.config.scaling_factor)
            return torch.cat(chunks)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        with self._vae() as vae:
            shift = getattr(vae.config, "shift_factor", None)
            scale = 2 ** (len(vae.config.block_out_channels) - 1)
            chunks = []
            for chunk in latents.split(images_at_once(latents.shape[2] * latents.shape[3] * scale**2)):
                unscaled = chunk.to(self.device, vae.dtype) / vae.config.scaling_factor
                chunks.append(vae.decode(unscaled + shift if shift else unscaled).sample)
            return torch.cat(chunks).clamp(-1, 1)

    def free_encoders(self, keep_vae: bool = False) -> None:
        if keep_vae:
            self._require("vae").to("cpu")
        freed = self.text_encoders if keep_vae else (*self.text_encoders, "vae")
        self.pipeline.register_modules(**dict.fromkeys(freed))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning of one chunk of prompts."""

    @abstractmethod
    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Tokenizers in the order of their encoders, each with the number of tokens that is read."""

    def _tokenize(self, index: int, prompts: list[str]) -> Tensor:
        """Ids (B, L) of one tokenizer, padded and cut to its length."""
        tokenizer, limit = self._tokenizers()[index]
        tokens = tokenizer(
            prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids.to(self.device)
        return ids

    @contextmanager
    def _vae(self) -> Iterator[Any]:
        """The autoencoder beside the denoiser; one that free_encoders put away goes back afterwards."""
        vae = self._require("vae")
        home = vae.device
        vae.to(self.device)
        try:
            yield vae
        finally:
            vae.to(home)

    def _require(self, name: str) -> Any:
        """A module of the pipeline; RuntimeError when free_encoders let it go."""
        module = getattr(self.pipeline, name)
        if module is None:
            raise RuntimeError(
                f"the {name.replace('_', ' ')} was freed: encode prompts and pictures before "
                "free_encoders(), or load the backbone again"
            )
        return module

    def _warn_of_cut_prompts(self, parts: list[list[str]]) -> None:
        """One warning with the number of prompts that are longer than what is read of them; it shows none."""
        cut: dict[int, int] = {}
        for tokenizer, limit in self._tokenizers():
            lengths = [len(ids) for part in parts for ids in tokenizer(part, verbose=False).input_ids]
            cut[limit] = max(cut.get(limit, 0), sum(length > limit for length in lengths))
        counts = [f"{count} at {limit} tokens" for limit, count in cut.items() if count]
        if counts:
            total = sum(len(part) for part in parts)
            logger.warning("of %d prompts some are too long and were cut: %s", total, ", ".join(counts))


def images_at_once(pixels: int) -> int:
    """Pictures of so many pixels in one call of the autoencoder, 1 to 64."""
    return min(64, max(1, PIXELS_AT_ONCE // pixels))
