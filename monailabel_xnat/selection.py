"""Which scans are images: by what they hold and by the filters in the settings."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from monailabel_xnat.client.roi import RoiCollection
from monailabel_xnat.config import Settings
from monailabel_xnat.listing import Resource, Scan

# Series that are derived from images, or are none: annotations, reports, plans, waveforms (DICOM PS3.3 C.7.3.1.1.1).
_NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "ECG", "HD", "PLAN"}
)

# ROI collections that hold a label map, or contours that make one.
_LABEL_KINDS = ("SEG", "RTSTRUCT", "NIFTI")


def is_image(scan: Scan, settings: Settings) -> bool:
    """Tell whether a scan is an image that the settings ask for."""
    return (
        scan.modality.upper() not in _NOT_IMAGES and bool(image_resources(scan, settings)) and _passes(scan, settings)
    )


def image_resources(scan: Scan, settings: Settings) -> list[Resource]:
    """Give the resources of a scan that may hold the image, best first; those known to be empty are left out."""
    filled = {resource.label.upper(): resource for resource in scan.resources if resource.file_count != 0}
    return [filled[label.upper()] for label in settings.image_resource if label.upper() in filled]


def drawn_labels(scan: Scan, settings: Settings) -> list[RoiCollection]:
    """Give the ROI collections of a scan that count as labels, oldest first: what others than we drew."""
    if not scan.collections or not settings.roi_tag:
        return []
    return [
        collection
        for collection in scan.collections
        if is_label(collection) and not collection.is_ours and _is_chosen(collection, settings)
    ]


def is_label(collection: RoiCollection) -> bool:
    """Tell whether a ROI collection is of a kind that can be read as label map."""
    return collection.kind in _LABEL_KINDS


def _is_chosen(collection: RoiCollection, settings: Settings) -> bool:
    return not settings.roi_label or matches(settings.roi_label, collection.label)


def matches(patterns: Sequence[str], *texts: str) -> bool:
    """Tell whether one of the texts fits patterns such as ``T1*`` and none fits one such as ``!*localizer*``.

    Parameters
    ----------
    patterns : sequence of str
        Shell patterns, compared without case; ``!`` before one excludes. None but exclusions: all others pass.
    *texts : str
        Names of the same thing, say a label and an ID.
    """
    wanted = [pattern.lower() for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:].lower() for pattern in patterns if pattern.startswith("!")]
    names = [text.lower() for text in texts]

    def fits_any(candidates: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in candidates)

    return (not wanted or fits_any(wanted)) and not fits_any(unwanted)


def _passes(scan: Scan, settings: Settings) -> bool:
    checks = (
        (settings.scan_type, (scan.type,)),
        (settings.series_description, (scan.series_description,)),
        (settings.modality, (scan.modality,)),
        (settings.quality, (scan.quality,)),
        (settings.subject, (scan.subject_label, scan.image_id.subject)),
        (settings.session, (scan.session_label, scan.image_id.experiment)),
    )
    return all(matches(patterns, *texts) for patterns, texts in checks) and (
        scan.frames is None or scan.frames >= settings.min_frames
    )
