"""Prompts as token ids whose embeddings may be replaced by vectors of one's own, with a gradient to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning

PLACEHOLDER = "*"
"""Stands for a learned vector in a prompt: one token in every tokenizer of CLIP's kind."""


class TokenSpace:
    """The token ids of a Stable Diffusion 1.x or 2.x, whose one text encoder reads one table of embeddings.

    ValueError for a family with more text encoders.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.family != "stable-diffusion":
            raise ValueError(
                f"token attacks need a single CLIP text encoder, as Stable Diffusion 1.x and 2.x have, and "
                f"this is a {backbone.family}: attack it by prompts, text-free inversion or fine-tuning"
            )
        self.tokenizer: Any = backbone.pipeline.tokenizer
        self.encoder: Any = backbone.pipeline.text_encoder
        self.embedding: nn.Embedding = self.encoder.get_input_embeddings()
        self.device = backbone.device
        self.length: int = self.tokenizer.model_max_length

    @property
    def table(self) -> Tensor:
        """Embeddings (V, D) of the vocabulary."""
        return self.embedding.weight.detach()

    def words(self) -> Tensor:
        """Ids (W,) that a prompt may hold: all but start, end and padding."""
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor([i for i in range(len(self.table)) if i not in special])

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Ids (N, L), padded and cut to the length that the encoder reads."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids
        return ids

    def prefixed(self, prompts: Sequence[str], count: int) -> tuple[Tensor, Tensor]:
        """Ids (N, L) with room for `count` tokens before each prompt, and the mask (N, L) of that room.

        A prompt that no longer fits loses its last words. ValueError when the room is all there is.
        """
        if not 1 <= count < self.length - 2:
            raise ValueError(f"{count} tokens before a prompt: give 1 to {self.length - 3} for this encoder")
        start, end, pad = (getattr(self.tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad"))
        rows = []
        for text in prompts:
            body = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            row = [start, *[pad] * count, *body[: self.length - 2 - count], end]
            rows.append(row + [pad] * (self.length - len(row)))
        mask = torch.zeros(len(rows), self.length, dtype=torch.bool)
        mask[:, 1 : count + 1] = True
        return torch.tensor(rows), mask

    def placed(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) of prompts with placeholders, and their mask; ValueError for a prompt without one."""
        ids = self.ids(prompts)
        mark = self.tokenizer(PLACEHOLDER, add_special_tokens=False).input_ids
        mask = ids == mark[0]
        missing = int((~mask.any(1)).sum())
        if len(mark) != 1 or missing:
            raise ValueError(
                f"{missing} of {len(ids)} prompts have no {PLACEHOLDER!r} among the {self.length} tokens "
                "that are read: it stands, as a word of its own, where the learned vector goes"
            )
        return ids, mask

    def encode(self, ids: Tensor, mask: Tensor | None = None, vectors: Tensor | None = None) -> Conditioning:
        """Conditioning of ids (N, L), the embeddings at `mask` replaced by vectors (mask.sum(), D).

        Vectors are taken row by row. The gradient reaches them; call it under no_grad where none is wanted.
        """
        with self._replaced(mask, vectors):
            return Conditioning(self.encoder(ids.to(self.device))[0])

    @contextmanager
    def _replaced(self, mask: Tensor | None, vectors: Tensor | None) -> Iterator[None]:
        if mask is None or vectors is None:
            yield
            return

        def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            # CLIPTextModel takes no embeddings: what its table gives is changed on the way out.
            output = output.clone()
            output[mask.to(output.device)] = vectors.to(output)
            return output

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
