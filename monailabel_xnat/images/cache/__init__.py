"""Images kept on this disk."""

from monailabel_xnat.images.cache.entry import Entry
from monailabel_xnat.images.cache.folder import Cache

__all__ = ["Cache", "Entry"]
