"""What an evaluation compares: a base model, and what makes it safe."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Method:
    """One row of a table. Weights are changed by at most one thing, and so is guidance."""

    name: str
    adapter: Path | None = None
    """A LoRA's .safetensors file, loaded and fused by plain diffusers."""
    denoiser: Path | None = None
    """Other weights of the denoiser: a folder that diffusers reads, as fine-tunes and baselines leave."""
    hgr: Path | None = None
    """Folder of a redirector: SafeCFG."""
    negative_prompt: str | None = None
    """One negative prompt for all prompts; "concepts" for the words of the harm that baselines are told."""
    sld: str | None = None
    """Safe Latent Diffusion by this preset: weak, medium, strong or max."""

    def __post_init__(self) -> None:
        for together in (("adapter", "denoiser"), ("hgr", "negative_prompt", "sld")):
            given = [name for name in together if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"method {self.name!r}: {' and '.join(given)}: give one of them")
        for name in ("adapter", "denoiser", "hgr"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise ValueError(f"method {self.name!r}: {name} {path} is not there")

    @property
    def kind(self) -> str:
        """What it is made of, such as "adapter + hgr"; "base" for nothing."""
        fields = ("adapter", "denoiser", "hgr", "negative_prompt", "sld")
        return " + ".join(name for name in fields if getattr(self, name) is not None) or "base"

    @property
    def guided(self) -> bool:
        """True where the guidance is another than plain CFG's, and could be left out."""
        return (self.hgr, self.negative_prompt, self.sld) != (None, None, None)


def read_methods(file: Path) -> list[Method]:
    """Methods of a YAML file, {name: {field: value}}; paths are relative to the working folder.

    ValueError for what is not of that form, with the fields that are allowed.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    allowed = [field.name for field in dataclasses.fields(Method) if field.name != "name"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: give a method a line, NAME: {{FIELD: VALUE}}, of {', '.join(allowed)}")
    methods = []
    for name, fields in content.items():
        unknown = set(fields or {}) - set(allowed)
        if unknown:
            raise ValueError(
                f"{file}: method {name!r} has {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}"
            )
        paths = {
            key: Path(value) for key, value in (fields or {}).items() if key in ("adapter", "denoiser", "hgr")
        }
        methods.append(Method(str(name), **{**(fields or {}), **paths}))
    return methods


def methods_of(hgr: Path | None, adapter: Path | None, denoiser: Path | None) -> list[Method]:
    """The base, and what of SafeCFG, safe LoRA and full fine-tune is given, each by itself."""
    known: dict[str, dict[str, Any]] = {
        "safecfg": {"hgr": hgr},
        "lora": {"adapter": adapter},
        "full": {"denoiser": denoiser},
    }
    return [
        Method("base"),
        *(Method(name, **parts) for name, parts in known.items() if all(parts.values())),
    ]
