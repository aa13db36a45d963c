"""Unsupervised safe fine-tuning of the denoiser."""
