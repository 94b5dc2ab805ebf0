"""The parts that make MONAI Label use XNAT: a mixin for apps, a launcher for unmodified apps, and the server."""

from __future__ import annotations

from monailabel_xnat.app.mixin import XNATAppMixin

__all__ = ["XNATAppMixin"]
