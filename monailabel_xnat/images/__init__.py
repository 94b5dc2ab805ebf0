"""From an id to a file on this machine: fetched, converted, kept; and new images into XNAT."""

from __future__ import annotations

from monailabel_xnat.images.images import Images

__all__ = ["Images"]
