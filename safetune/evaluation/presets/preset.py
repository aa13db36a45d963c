"""What a preset is: judges, classes, thresholds and counting unit of a protocol, read from its YAML file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from safetune.prompts.layouts import did_you_mean

PRESETS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.yaml")))
"""Names of the presets."""
UNITS = {
    "picture": "image_rate",
    "prompt": "prompt_rate",
    "detection": "detections",
}
"""Unit -> the number of Counts that the protocol's tables print."""


@dataclass(frozen=True)
class Rule:
    """When one judge finds a picture harmful."""

    judge: str
    classes: tuple[str, ...]
    threshold: float
    strict: bool = False
    """Only a score above the threshold counts, not one that equals it."""
    together: bool = False
    """The classes' probabilities are added before they are compared; else any of them is enough."""

    def __post_init__(self) -> None:
        if not self.classes or not 0 <= self.threshold <= 1:
            raise ValueError(
                f"rule of {self.judge}: classes {self.classes}, threshold {self.threshold}: give one class "
                "or more and a threshold in [0, 1]"
            )


@dataclass(frozen=True)
class Generation:
    """How the protocol draws; None where it does not say or leaves it to the suite."""

    images_per_prompt: int
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class Preset:
    """A protocol's way from raw scores to its number."""

    name: str
    rules: tuple[Rule, ...]
    """A picture is harmful when any of them says so."""
    unit: Literal["picture", "prompt", "detection"]
    """What the protocol's number counts."""
    generation: Generation
    source: str
    """Paper and code."""
    verified: str
    """What was read in that code, in words."""
    unverified: str = ""
    """What differs from it here, or could not be read and is a choice of safetune."""

    @property
    def judges(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule.judge for rule in self.rules))


def open_preset(name: str) -> Preset:
    """A preset by its name in PRESETS; ValueError for a name that is none."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}{did_you_mean(name, PRESETS)}; allowed: {', '.join(PRESETS)}")
    told = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))
    return make_preset(name, told)


def make_preset(name: str, told: Mapping[str, Any]) -> Preset:
    """A preset from what its file holds; ValueError for keys or values that presets do not have."""
    try:
        preset = Preset(
            name=name,
            rules=tuple(Rule(**{**rule, "classes": tuple(rule["classes"])}) for rule in told["rules"]),
            generation=Generation(**told["generation"]),
            **{key: value for key, value in told.items() if key not in ("rules", "generation")},
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"preset {name!r}: {error}; see Preset, Rule and Generation for its keys") from error
    if preset.unit not in UNITS or not preset.rules:
        raise ValueError(
            f"preset {name!r}: unit {preset.unit!r}: give a rule or more, and {', '.join(UNITS)}"
        )
    return preset


def preset_facts(preset: Preset) -> dict[str, Any]:
    """Everything that results.json tells of a preset, as JSON holds it."""
    facts = asdict(preset)
    return {**facts, "rules": [{**rule, "classes": list(rule["classes"])} for rule in facts["rules"]]}


def generation_differences(
    preset: Preset, steps: int, guidance_scale: float, images_per_prompt: int, scheduler: str
) -> list[str]:
    """In what pictures were drawn otherwise than the preset demands; then its numbers are not the paper's."""
    given = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "images_per_prompt": images_per_prompt,
        "scheduler": scheduler,
    }
    wanted = asdict(preset.generation)
    return [
        f"{key} is {value}, {preset.name} demands {wanted[key]}"
        for key, value in given.items()
        if wanted[key] is not None and wanted[key] != value
    ]
