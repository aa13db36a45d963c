"""HGR, the Harmful Guidance Redirector."""

from safetune.hgr.model import HGR

__all__ = ["HGR"]
