"""safetune: make text-to-image diffusion models safe by unsupervised fine-tuning (after SafeCFG)."""

__version__ = "0.1.0"
