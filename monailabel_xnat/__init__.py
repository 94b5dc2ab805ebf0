"""MONAI Label on XNAT: annotate, save and train from the studies in an XNAT archive.

Names are loaded at first use: importing the package alone loads neither MONAI Label nor xnatpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monailabel_xnat.app import XNATAppMixin
    from monailabel_xnat.client.dicomweb import DicomWebAnswer
    from monailabel_xnat.config import Secret, Settings
    from monailabel_xnat.convert import ConvertedVolume, Grid, dicom_to_nifti, read_label, to_grid, write_label
    from monailabel_xnat.datastore import XNATDatastore
    from monailabel_xnat.errors import (
        AccessDeniedError,
        AmbiguousNameError,
        CacheError,
        DryRunError,
        ImageConflictError,
        ImageConversionError,
        ImageError,
        InvalidIdError,
        LabelError,
        LabelFileError,
        LabelGeometryError,
        LabelNotUploadedError,
        LoginError,
        MalformedFileError,
        NoImageError,
        NotInArchiveError,
        ReadOnlyError,
        ServerError,
        ServerTimeoutError,
        SettingsError,
        TransferError,
        UnknownImageError,
        UnknownLabelError,
        UnknownSettingError,
        UnreadDrawingError,
        XNATDatastoreError,
    )
    from monailabel_xnat.ids import ImageId, LabelId
    from monailabel_xnat.images.prefetch import PrefetchReport, Progress
    from monailabel_xnat.sandbox import Sandbox
    from monailabel_xnat.training.training_set import TrainingSet

__version__ = "0.2.0"

# The public names, by the module from which they are loaded.
_NAMES = {
    "app": ("XNATAppMixin",),
    "client.dicomweb": ("DicomWebAnswer",),
    "config": ("Secret", "Settings"),
    "convert": ("ConvertedVolume", "Grid", "dicom_to_nifti", "read_label", "to_grid", "write_label"),
    "datastore": ("XNATDatastore",),
    "errors": (
        "AccessDeniedError",
        "AmbiguousNameError",
        "CacheError",
        "DryRunError",
        "ImageConflictError",
        "ImageConversionError",
        "ImageError",
        "InvalidIdError",
        "LabelError",
        "LabelFileError",
        "LabelGeometryError",
        "LabelNotUploadedError",
        "LoginError",
        "MalformedFileError",
        "NoImageError",
        "NotInArchiveError",
        "ReadOnlyError",
        "ServerError",
        "ServerTimeoutError",
        "SettingsError",
        "TransferError",
        "UnknownImageError",
        "UnknownLabelError",
        "UnknownSettingError",
        "UnreadDrawingError",
        "XNATDatastoreError",
    ),
    "ids": ("ImageId", "LabelId"),
    "images.prefetch": ("PrefetchReport", "Progress"),
    "sandbox": ("Sandbox",),
    "training.training_set": ("TrainingSet",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AccessDeniedError",
    "AmbiguousNameError",
    "CacheError",
    "ConvertedVolume",
    "DicomWebAnswer",
    "DryRunError",
    "Grid",
    "ImageConflictError",
    "ImageConversionError",
    "ImageError",
    "ImageId",
    "InvalidIdError",
    "LabelError",
    "LabelFileError",
    "LabelGeometryError",
    "LabelId",
    "LabelNotUploadedError",
    "LoginError",
    "MalformedFileError",
    "NoImageError",
    "NotInArchiveError",
    "PrefetchReport",
    "Progress",
    "ReadOnlyError",
    "Sandbox",
    "Secret",
    "ServerError",
    "ServerTimeoutError",
    "Settings",
    "SettingsError",
    "TrainingSet",
    "TransferError",
    "UnknownImageError",
    "UnknownLabelError",
    "UnknownSettingError",
    "UnreadDrawingError",
    "XNATAppMixin",
    "XNATDatastore",
    "XNATDatastoreError",
    "__version__",
    "dicom_to_nifti",
    "read_label",
    "to_grid",
    "write_label",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
