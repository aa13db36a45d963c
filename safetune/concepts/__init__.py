"""Concept banks: harmful terms with their safe replacements, and the prompt pairs made of them."""

from safetune.concepts.bank import Category, Concept, ConceptBank, Template, bundled_banks, load_bank
from safetune.concepts.generation import bank_prompts

__all__ = ["Category", "Concept", "ConceptBank", "Template", "bank_prompts", "bundled_banks", "load_bank"]
