"""Adapter files for others: written, loaded back and compared before they count."""

from safetune.export.exporting import export_run

__all__ = ["export_run"]
