"""Which scans are images: by what they hold and by the filters in the settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from functools import lru_cache

from monailabel_xnat.client.roi import RoiCollection
from monailabel_xnat.config import Settings
from monailabel_xnat.listing import Resource, Scan

# Series that are derived from images, or are none: annotations, reports, plans, waveforms (DICOM PS3.3 C.7.3.1.1.1).
_NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "ECG", "HD", "PLAN"}
)
# Where XNAT knows no modality, the type of such a scan says it.
_NOT_IMAGE_TYPES = frozenset({"SEG", "SR", "PR", "KO", "RTSTRUCT"})

# What we store ourselves with a scan is called so, labels above all; it is never the image.
OWN_RESOURCES = "MONAILABEL_"
_USUAL = Settings.image_resource

# ROI collections that hold a label map, or contours that make one.
_LABEL_KINDS = ("SEG", "RTSTRUCT", "NIFTI")


class Selection:
    """Tells which scans are images that the settings ask for.

    Parameters
    ----------
    settings : Settings
        The filters; those that are not set cost nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        filters: tuple[tuple[tuple[str, ...], Callable[[Scan], tuple[str, ...]]], ...] = (
            (settings.quality, lambda scan: (scan.quality,)),
            (settings.scan_type, lambda scan: (scan.type,)),
            (settings.series_description, lambda scan: (scan.series_description,)),
            (settings.modality, lambda scan: (scan.modality,)),
            (settings.subject, lambda scan: (scan.subject_label, scan.image_id.subject)),
            (settings.session, lambda scan: (scan.session_label, scan.image_id.experiment)),
        )
        self._filters = [(patterns, names) for patterns, names in filters if patterns]

    def __contains__(self, scan: Scan) -> bool:
        if scan.modality.upper() in _NOT_IMAGES or scan.type.upper() in _NOT_IMAGE_TYPES:
            return False
        if scan.frames is not None and scan.frames < self._settings.min_frames:
            return False
        for patterns, names in self._filters:
            if not matches(patterns, *names(scan)):
                return False
        return bool(image_resources(scan, self._settings))


def image_resources(scan: Scan, settings: Settings) -> list[Resource]:
    """Give the resources of a scan that may hold the image, best first; those known to be empty are left out."""
    patterns = settings.image_resource
    filled = [found for found in scan.resources if found.file_count != 0 and image_rank(patterns, found.label)]
    return filled if len(filled) < 2 else sorted(filled, key=lambda resource: image_rank(patterns, resource.label))


@lru_cache(maxsize=4096)
def image_rank(patterns: tuple[str, ...], label: str) -> tuple[int, ...]:
    """Rank a resource among those that are read as the image: the lower the better, () for one that is not read.

    Parameters
    ----------
    patterns : tuple of str
        As for :func:`matches`, best first. None but exclusions: the usual resources without those.
    label : str
        The resource's label.
    """
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or _USUAL
    if label.upper().startswith(OWN_RESOURCES) or not matches(patterns, label):
        return ()
    usual = _USUAL.index(label.upper()) if label.upper() in _USUAL else len(_USUAL)
    # Of several that fit the same pattern, the one that comes first by default.
    return next(((place, usual) for place, pattern in enumerate(wanted) if matches((pattern,), label)), ())


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


@lru_cache(maxsize=4096)
def matches(patterns: tuple[str, ...], *texts: str) -> bool:
    """Tell whether one of the texts fits patterns such as ``T1*`` and none fits one such as ``!*localizer*``.

    Parameters
    ----------
    patterns : tuple of str
        Shell patterns, compared without case; ``!`` before one excludes. None but exclusions: all others pass.
    *texts : str
        Names of the same thing, say a label and an ID.
    """
    if not patterns:
        return True
    wanted, unwanted = _compiled(patterns)
    names = [text.lower() for text in texts]
    return (wanted is None or any(map(wanted.match, names))) and not (unwanted and any(map(unwanted.match, names)))


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """Make one expression of those that include, and one of those that exclude; None where there are none."""
    wanted = [translate(pattern.lower()) for pattern in patterns if not pattern.startswith("!")]
    unwanted = [translate(pattern[1:].lower()) for pattern in patterns if pattern.startswith("!")]
    return (
        re.compile("|".join(wanted)) if wanted else None,
        re.compile("|".join(unwanted)) if unwanted else None,
    )
