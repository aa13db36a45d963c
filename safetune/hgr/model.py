"""The redirector: a small Transformer from a prompt's embedding to its unconditional embedding."""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from safetune.conditioning import Conditioning, cat, shift


class HGR(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="safetune",
    tags=["safetune", "safecfg", "text-to-image"],
    repo_url="https://arxiv.org/abs/2412.16039",
):
    """HGR(c) = null + delta(c), shape (B, L, D) to (B, L, D) (SafeCFG, arXiv 2412.16039).

    The output layer starts at zero, so an untrained HGR is plain classifier-free guidance, bit for bit.
    Where the family has pooled embeddings (B, P), they get a delta of their own. `prototypes` (K, L, D) and
    `pooled_prototypes` (K, P) hold the mean delta of each concept once training has ended.
    """

    def __init__(
        self,
        text_width: int,
        max_tokens: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        pooled_width: int = 0,
        base_fingerprint: str = "",
        concepts: Sequence[str] = (),
        categories: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if len(concepts) != len(categories):
            raise ValueError(f"{len(concepts)} concepts but {len(categories)} categories: give one for each")
        self.base_fingerprint = base_fingerprint
        self.concepts, self.categories = tuple(concepts), tuple(categories)
        self.norm_in = nn.LayerNorm(text_width)
        self.project_in = nn.Linear(text_width, width)
        self.positions = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm_out = nn.LayerNorm(width)
        # The gate lets a harmful word's own embedding through: that is most of a good negative prompt, and it
        # carries over to words that training never saw.
        self.gate = zero_linear(width, text_width)
        self.project_out = zero_linear(width, text_width)
        self.project_pooled = zero_linear(width, pooled_width) if pooled_width else None
        self.register_buffer("prototypes", torch.zeros(len(self.concepts), max_tokens, text_width))
        self.register_buffer("pooled_prototypes", torch.zeros(len(self.concepts), pooled_width))
        self.prototypes: Tensor
        self.pooled_prototypes: Tensor

    def forward(self, embeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """Deltas (B, L, D) and (B, P) or None of prompts (B, L, D), in the redirector's own precision."""
        normed = self.norm_in(embeds.to(self.positions.dtype))
        hidden = self.project_in(normed) + self.positions[: embeds.shape[1]]
        hidden = self.norm_out(self.blocks(hidden))
        pooled = None if self.project_pooled is None else self.project_pooled(hidden.mean(1))
        return self.project_out(hidden) + self.gate(hidden) * normed, pooled

    @torch.no_grad()
    def delta(self, conditioning: Conditioning) -> Conditioning:
        """The redirection of each prompt, without gradient; large batches in chunks."""
        return cat([Conditioning(*self(chunk)) for chunk in conditioning.embeds.split(256)])

    def redirect(self, conditioning: Conditioning, null: Conditioning) -> Conditioning:
        """HGR(c), a row for each prompt: what the unconditional branch is given."""
        return shift(null, self.delta(conditioning))

    def prototype_delta(self) -> Conditioning:
        """The mean redirection of each concept: K rows."""
        pooled = None if self.project_pooled is None else self.pooled_prototypes
        return Conditioning(self.prototypes, pooled)

    def check_base(self, fingerprint: str) -> None:
        """ValueError unless this HGR was trained for the model with that fingerprint."""
        if fingerprint != self.base_fingerprint:
            raise ValueError(
                f"this HGR belongs to the base model {self.base_fingerprint or '(unnamed)'}, the one given "
                f"is {fingerprint}; load the base it was trained on, or train one with recipes/train_hgr.py"
            )


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zero until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
