"""The model card that travels with an exported adapter."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData


def model_card(run: dict[str, Any], facts: dict[str, object]) -> str:
    """README.md of an export, with the hub's front matter."""
    config = run["config"]
    data = ModelCardData(
        base_model=str(config["model"]),
        library_name="diffusers",
        tags=["lora", "text-to-image", "safetune", "safecfg", "unlearning"],
        license="other",
    )
    body = f"""# Safe LoRA for {config["model"]}

A LoRA that unlearns harmful directions, trained by safetune (after SafeCFG, arXiv 2412.16039) from
pseudo-labels alone. It needs no safetune at inference and costs nothing beyond a LoRA.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{config["model"]}")
pipeline.load_lora_weights("FOLDER", weight_name="{facts["file"]}")
```

Rank {config["rank"]}, {config["targets"]}, {config["steps"]} steps, eta {config["eta"]}. Loaded back by
diffusers, its output differs from the trained weights by at most {facts["max_abs_diff"]:.2e} (fp32).

No filter is perfect: measure the adapter on your own prompts before you rely on it.
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
