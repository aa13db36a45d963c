"""Denoisers by family behind one interface."""

from safetune.backbone.base import Backbone
from safetune.backbone.loading import load_backbone

__all__ = ["Backbone", "load_backbone"]
