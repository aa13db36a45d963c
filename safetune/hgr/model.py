"""The redirector: a small Transformer from a prompt's embedding to its unconditional embedding."""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from safetune.conditioning import Conditioning


class HGR(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="safetune",
    tags=["safetune", "safecfg", "text-to-image"],
    repo_url="https://arxiv.org/abs/2412.16039",
):
    """HGR(c) = null + delta(c), shape (B, L, D) to (B, L, D) (SafeCFG, arXiv 2412.16039).

    The output layer starts at zero, so an untrained HGR is plain classifier-free guidance, bit for bit.
    `prototypes` (K, L, D) hold the mean delta of each concept once training has ended.
    """

    def __init__(
        self,
        text_width: int,
        max_tokens: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
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
        self.project_out = nn.Linear(width, text_width)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)
        self.register_buffer("prototypes", torch.zeros(len(self.concepts), max_tokens, text_width))
        self.prototypes: Tensor

    def delta(self, embeds: Tensor) -> Tensor:
        """The redirection (B, L, D), in the redirector's own precision."""
        hidden = self.project_in(self.norm_in(embeds.to(self.positions.dtype)))
        hidden = self.blocks(hidden + self.positions[: embeds.shape[1]])
        output: Tensor = self.project_out(self.norm_out(hidden))
        return output

    def forward(self, embeds: Tensor, null: Tensor) -> Tensor:
        """Unconditional embeddings (B, L, D) for prompts (B, L, D); null (1 or B, L, D) sets the dtype."""
        return null + self.delta(embeds).to(null.dtype)

    def redirect(self, conditioning: Conditioning, null: Conditioning) -> Conditioning:
        """Conditioning of the unconditional branch, a row for each prompt."""
        return Conditioning(self(conditioning.embeds, null.embeds))

    def check_base(self, fingerprint: str) -> None:
        """ValueError unless this HGR was trained for the model with that fingerprint."""
        if fingerprint != self.base_fingerprint:
            raise ValueError(
                f"this HGR belongs to the base model {self.base_fingerprint or '(unnamed)'}, the one given "
                f"is {fingerprint}; load the base it was trained on, or train one with recipes/train_hgr.py"
            )
