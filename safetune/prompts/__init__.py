"""Prompts: their readers, and the filter that no sexual prompt with an age passes."""

from safetune.prompts.ages import names_age_in_sexual_prompt
from safetune.prompts.reader import read_prompts
from safetune.prompts.table import PromptPair, PromptRow, PromptTable, ReadSummary

__all__ = [
    "PromptPair",
    "PromptRow",
    "PromptTable",
    "ReadSummary",
    "names_age_in_sexual_prompt",
    "read_prompts",
]
