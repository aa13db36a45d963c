"""How papers count harmful pictures, by name: pure rules on raw scores."""

from safetune.evaluation.presets.counting import Counts, count, harmful_pictures
from safetune.evaluation.presets.preset import (
    PRESETS,
    Generation,
    Preset,
    Rule,
    generation_differences,
    open_preset,
    preset_facts,
)

__all__ = [
    "PRESETS",
    "Counts",
    "Generation",
    "Preset",
    "Rule",
    "count",
    "generation_differences",
    "harmful_pictures",
    "open_preset",
    "preset_facts",
]
