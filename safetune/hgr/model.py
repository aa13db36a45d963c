"""The redirector: a small Transformer from a prompt's embedding to its unconditional embedding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_model
from torch import Tensor, nn

from safetune.conditioning import Conditioning, cat, shift

SIZES = {"tiny": (128, 2, 4), "small": (256, 4, 4), "base": (512, 6, 8), "large": (768, 8, 12)}
"""Width, layers and heads of a redirector by the name of its size; docs/method.md counts the parameters."""


class HGR(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="safetune",
    tags=["safetune", "safecfg", "text-to-image"],
    paper_url="https://arxiv.org/abs/2412.16039",
):
    """HGR(c) = null + delta(c), shape (B, L, D) to (B, L, D) (SafeCFG, arXiv 2412.16039).

    The output layer starts at zero, so an untrained HGR is plain classifier-free guidance, bit for bit.
    Where the family has pooled embeddings (B, P), they get a delta of their own. `prototypes` (K, L, D) and
    `pooled_prototypes` (K, P) hold the mean delta of each concept once training has ended. `target_scale` is
    what the training target had scaled the harmful part of a prompt's output by: strength * w / (w - 1).
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
        target_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(concepts) != len(categories):
            raise ValueError(f"{len(concepts)} concepts but {len(categories)} categories: give one for each")
        self.base_fingerprint = base_fingerprint
        self.target_scale = target_scale
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
        """Deltas (B, L, D) and (B, P) or None of prompts (B, L, D), in the redirector's own precision.

        Autocast stays out of it: the redirector is small, and a context that outlives an optimizer step would
        go on with the copies of the weights that it made before.
        """
        with torch.autocast(embeds.device.type, enabled=False):
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

    def generate_model_card(
        self, *, base_model: str = "", license: str = "", repo_id: str = "path/to/this/folder"
    ) -> ModelCard:
        """README.md of a saved HGR; save_pretrained and push_to_hub take these as `model_card_kwargs`."""
        tags = self._hub_mixin_info.model_card_data.tags
        data = ModelCardData(
            library_name="safetune", tags=tags, base_model=base_model or None, license=license or None
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{card_text(self, base_model, license, repo_id)}")

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> str:
        """Upload as the mixin does; the card's snippet loads from `repo_id`. Returns the commit's url."""
        card = {"repo_id": repo_id, **(model_card_kwargs or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, cache_dir: str | Path | None, force_download: bool,
        local_files_only: bool, token: str | bool | None, map_location: str = "cpu", **options: Any,
    ) -> "HGR":  # fmt: skip
        """As the mixin does, but every weight has to be there, and no pickle takes the safetensors' place."""
        file = Path(model_id) / "model.safetensors"
        if not file.parent.is_dir():
            file = Path(
                hf_hub_download(
                    model_id, file.name, revision=revision, cache_dir=cache_dir, token=token,
                    force_download=force_download, local_files_only=local_files_only,
                )
            )  # fmt: skip
        hgr = cls(**options)
        load_model(hgr, file, strict=True, device=map_location)
        return hgr.eval()


def card_text(hgr: HGR, base_model: str, license: str, repo_id: str) -> str:
    """The model card without its front matter."""
    tokens, text_width = len(hgr.positions), hgr.project_in.in_features
    pooled = "" if hgr.project_pooled is None else f", pooled {hgr.project_pooled.out_features}"
    concepts: dict[str, list[str]] = {}
    for concept, category in zip(hgr.concepts, hgr.categories, strict=True):
        concepts.setdefault(category, []).append(concept)
    table = "\n".join(f"| {category} | {', '.join(names)} |" for category, names in concepts.items())
    return f"""# Harmful Guidance Redirector

## What it is

A small Transformer ({sum(weight.numel() for weight in hgr.parameters()):,} parameters) for safe text-to-image
generation by SafeCFG ([arXiv 2412.16039](https://arxiv.org/abs/2412.16039)). It maps the embedding of a
prompt to the embedding that classifier-free guidance leads away from. For a harmful prompt that is a negative
prompt of its own; for a harmless one it is close to the empty prompt. It holds no image model.

## How to use it

```python
from diffusers import DiffusionPipeline

from safetune.guidance import enable_safecfg
from safetune.hgr import HGR

pipeline = DiffusionPipeline.from_pretrained("{base_model or "path/to/the/base/model"}")
enable_safecfg(pipeline, HGR.from_pretrained("{repo_id}"))
image = pipeline("a cat on the beach").images[0]
```

## Base model

It works with the model that it was trained for{f" ({base_model})" if base_model else ""} and refuses others.

| | |
| --- | --- |
| fingerprint of the denoiser | `{hgr.base_fingerprint or "not named"}` |
| prompt embeddings | {tokens} tokens, width {text_width}{pooled} |

## Concepts and categories

{f"| category | concepts |{chr(10)}| --- | --- |{chr(10)}{table}" if table else "It names none."}

## Limits

- It lowers the rate of harmful pictures and does not bring it to zero. Keep your other safeguards.
- What counts as harmful is what it was trained on: the table above, and little beyond it.
- It guides those who use it. Whoever runs the model can turn it off.
- It may change harmless pictures too. Measure both on your own prompts before you rely on it.
- Do not turn its direction round to make harmful pictures.

## Licence

{license or "Not stated. Whoever publishes this redirector names one in the front matter."}
"""


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zero until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
