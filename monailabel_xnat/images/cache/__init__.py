"""The cache: images that are kept on this disk."""

from monailabel_xnat.images.cache.entry import CachedImage
from monailabel_xnat.images.cache.folder import Cache

__all__ = ["Cache", "CachedImage"]
