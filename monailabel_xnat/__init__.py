"""MONAI Label on XNAT: annotate, save and train from the studies in an XNAT archive.

Names are loaded at first use, so that importing the package costs neither MONAI Label nor xnatpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monailabel_xnat.app import XNATAppMixin
    from monailabel_xnat.config import Settings
    from monailabel_xnat.datastore import XNATDatastore
    from monailabel_xnat.errors import XNATDatastoreError
    from monailabel_xnat.ids import ImageId, LabelId

__version__ = "0.1.0"

__all__ = [
    "ImageId",
    "LabelId",
    "Settings",
    "XNATAppMixin",
    "XNATDatastore",
    "XNATDatastoreError",
    "__version__",
]

_HOMES = {
    "ImageId": "ids",
    "LabelId": "ids",
    "Settings": "config",
    "XNATAppMixin": "app",
    "XNATDatastore": "datastore",
    "XNATDatastoreError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
