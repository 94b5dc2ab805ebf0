"""What exists in XNAT: the images of the projects, and what people have drawn on them."""

from __future__ import annotations

from monailabel_xnat.catalog.catalog import Catalog
from monailabel_xnat.catalog.scan import Resource, Scan

__all__ = ["Catalog", "Resource", "Scan"]
