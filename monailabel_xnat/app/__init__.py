"""How MONAI Label is told to use XNAT."""

from __future__ import annotations

from monailabel_xnat.app.mixin import XNATAppMixin

__all__ = ["XNATAppMixin"]
