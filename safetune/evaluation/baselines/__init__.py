"""Other methods to compare with, written from their papers: SLD, UCE, ESD, and a fixed negative prompt.

All of them are told the harm by name (safetune.evaluation.baselines.concepts); safetune's own fine-tuning is
not. docs/baselines.md says what each one is told and which settings it runs with.
"""
