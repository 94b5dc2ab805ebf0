"""Images kept on this disk."""

from monailabel_xnat.cache.entry import Entry
from monailabel_xnat.cache.folder import Cache

__all__ = ["Cache", "Entry"]
