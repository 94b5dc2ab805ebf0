"""Images: their files are downloaded, converted and kept on this machine; new images are added to XNAT."""

from __future__ import annotations

from monailabel_xnat.images.images import Images

__all__ = ["Images"]
