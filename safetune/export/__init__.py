"""Weights for others: in their formats, loaded back by their readers before they count."""

from safetune.export.exporting import export_run

__all__ = ["export_run"]
