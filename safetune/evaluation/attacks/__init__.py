"""Attacks on a safe model. They know a target by its interface alone, so that a new target changes none.

A target draws pictures from prompts (safetune.evaluation.attacks.target); an attack looks for the harm that
is still in it, and reports how often it found some. Attacks are white-box: they read the target's gradients.
"""
