"""The choice of the scans that are images: by their content, and by the filters in the settings."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from monailabel_xnat.catalog.listing import Names
from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.client.drawn import Drawing
from monailabel_xnat.client.roi import SUFFIXES
from monailabel_xnat.config import Settings
from monailabel_xnat.config.patterns import escaped, is_exclusion, matches

logger = logging.getLogger(__name__)

_NamesOf = Callable[[Scan], "tuple[str, ...]"]

# Modalities of series that are not images, or are derived from images: annotations, reports, plans, waveforms
# (DICOM PS3.3 C.7.3.1.1.1).
_NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "ECG", "HD", "PLAN"}
)
# Those of them that hold a label map, or contours from which a label map can be made.
_DRAWN_SCANS = frozenset({"SEG", "RTSTRUCT"})
# If XNAT knows no modality, the scan type shows that a scan is not an image.
_NOT_IMAGE_TYPES = frozenset({"SEG", "SR", "PR", "KO", "RTSTRUCT"})

# The labels of all resources that this package stores start so. They are never read as the image.
OWN_RESOURCES = "MONAILABEL_"
_USUAL = Settings.image_resource

# The kind of ROI collections that hold measurements, such as distances. They are never a label.
_MEASUREMENTS = "MEAS"

# How many names of scans a warning shows.
_SHOWN_NAMES = 5
_PERSONAL = ("subject", "session")
_ESCAPE_HINT = r" (a comma separates patterns; write \, or \[ for the character itself)"


class Selection:
    """Chooses the scans that are images and pass the filters in the settings.

    Parameters
    ----------
    settings : Settings
        The filters. A filter that is not set takes no time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def of(self, scans: Mapping[str, Scan], shared: Mapping[str, Sequence[Names]]) -> Choice:
        """Return the scans that are images and pass all filters, in the same order.

        Parameters
        ----------
        scans : mapping
            All listed scans, by id.
        shared : mapping
            Labels that projects give to sessions shared into them, by experiment ID. Filters are compared with these
            labels as well.
        """
        filters = self._filters(scans.values(), shared)
        chosen = {image: scan for image, scan in scans.items() if self._is_image(scan) and _passes(scan, filters)}
        return Choice(chosen, "" if chosen else self._why_none(scans.values(), filters))

    def reasons(self, scans: Mapping[str, Scan], shared: Mapping[str, Sequence[Names]]) -> dict[str, tuple[str, ...]]:
        """Return by id why each scan that :meth:`of` does not choose is left out; each of several reasons is named.

        Parameters
        ----------
        scans, shared
            As for :meth:`of`.
        """
        filters = self._filters(scans.values(), shared)
        found = {image: tuple(self._reasons_of(scan, filters)) for image, scan in scans.items()}
        return {image: reasons for image, reasons in found.items() if reasons}

    def _reasons_of(self, scan: Scan, filters: list[_Applied]) -> Iterator[str]:
        if _is_derived(scan.modality, scan.type):
            yield f"{scan.modality or scan.type} is no image"
            return
        for name, patterns, names_of in filters:
            if not matches(patterns, *names_of(scan)):
                is_called = repr(names_of(scan)[0]) if names_of(scan)[0] else "a scan without it"
                yield f"{_shown(self._settings, name)} leaves out {is_called}"
        if not _has_files(scan):
            yield "it has no files"
        elif not image_resources(scan, self._settings):
            held = ", ".join(repr(resource.label) for resource in scan.resources)
            yield f"{_shown(self._settings, 'image_resource')} leaves out {held}"
        if scan.frames is not None and scan.frames < self._settings.min_frames:
            yield f"the setting min_frames={self._settings.min_frames} leaves out {scan.frames}"

    def _filters(self, scans: Collection[Scan], shared: Mapping[str, Sequence[Names]]) -> list[_Applied]:
        """Return the filters that are set."""
        return [
            _Applied(name, _chosen_patterns(name, names_of, self._settings, scans), names_of)
            for name, names_of in _name_filters(shared).items()
            if getattr(self._settings, name)
        ]

    def _is_image(self, scan: Scan) -> bool:
        if _is_derived(scan.modality, scan.type) or (
            scan.frames is not None and scan.frames < self._settings.min_frames
        ):
            return False
        return bool(image_resources(scan, self._settings))

    def _why_none(self, scans: Iterable[Scan], filters: list[_Applied]) -> str:
        """Return a text that names the filter which leaves no image, and the values that exist; "" without scans."""
        found = [scan for scan in scans if not _is_derived(scan.modality, scan.type) and _has_files(scan)]
        if not found:
            return ""
        total = f"{len(found)} scan{'s' if len(found) > 1 else ''}"
        for name, patterns, names_of in filters:
            if not any(matches(patterns, *names_of(scan)) for scan in found):
                # The names of subjects and sessions may identify a patient, and must not be in a log.
                there_are = "" if name in _PERSONAL else _most_common(names_of(scan)[0] for scan in found)
                return f"{_shown(self._settings, name)} fits none of {total}{there_are}{_ESCAPE_HINT}"
        if not any(image_resources(scan, self._settings) for scan in found):
            there_are = _most_common(resource.label for scan in found for resource in scan.resources)
            return f"{_shown(self._settings, 'image_resource')} fits none of {total}{there_are}"
        least = self._settings.min_frames
        if all(scan.frames is not None and scan.frames < least for scan in found):
            most = max(scan.frames or 0 for scan in found)
            return f"the setting min_frames={least} fits none of {total}; the most images of a scan are {most}"
        names = [*(name for name, _, _ in filters), "image_resource", "min_frames"]
        used = [name for name in names if getattr(self._settings, name) != getattr(Settings, name)]
        return f"the settings {', '.join(used)} together fit none of {total}; each alone fits some"


class Choice(NamedTuple):
    """The chosen images, by id. If there are none, ``problem`` says which filter left none."""

    images: dict[str, Scan]
    problem: str


class _Applied(NamedTuple):
    """A filter: the setting, its patterns, and a function that returns the names of a scan to compare them with."""

    setting: str
    patterns: tuple[str, ...]
    names_of: _NamesOf


def _name_filters(shared: Mapping[str, Sequence[Names]]) -> dict[str, _NamesOf]:
    """Return, for each setting, a function that returns the names of a scan to compare its patterns with."""

    def there(scan: Scan) -> Sequence[Names]:
        return shared.get(scan.image_id.experiment, ()) if shared else ()

    return {
        "quality": lambda scan: (scan.quality,),
        "scan_type": lambda scan: (scan.type,),
        "series_description": lambda scan: (scan.series_description,),
        "modality": lambda scan: (scan.modality,),
        "subject": lambda scan: (scan.subject_label, scan.image_id.subject, *(names.subject for names in there(scan))),
        "session": lambda scan: (
            *(scan.session_label, scan.image_id.experiment),
            *(names.session for names in there(scan)),
        ),
    }


def _chosen_patterns(name: str, names_of: _NamesOf, settings: Settings, scans: Iterable[Scan]) -> tuple[str, ...]:
    """Return the patterns of a filter. If its whole text equals a name with a comma, that is the only pattern."""
    patterns: tuple[str, ...] = getattr(settings, name)
    text = getattr(patterns, "text", "").lower()
    if len(patterns) < 2 or not text or not any(text == name.lower() for scan in scans for name in names_of(scan)):
        return patterns
    logger.info("the setting %s is taken for one name, which holds a comma", name)
    return (escaped(text),)


def _passes(scan: Scan, filters: list[_Applied]) -> bool:
    for _, patterns, names_of in filters:  # noqa: SIM110 - a generator for each of 20000 scans takes twice as long
        if not matches(patterns, *names_of(scan)):
            return False
    return True


# The results are kept, because thousands of scans have few different modalities and types.
@lru_cache(maxsize=4096)
def _is_derived(modality: str, type_: str) -> bool:
    return modality.upper() in _NOT_IMAGES or type_.upper() in _NOT_IMAGE_TYPES


def chosen_by(settings: Settings) -> str:
    """Return the settings that choose the images, as text: ``project=A,B, modality=MR``.

    Two datastores of one user and one server with the same text list the same images.
    """
    names = ("project", *_name_filters({}), "image_resource", "min_frames")
    texts = {
        name: ",".join(value) if isinstance(value, tuple) else str(value)
        for name in names
        if (value := getattr(settings, name)) != getattr(Settings, name) or name == "project"
    }
    return ", ".join(f"{name}={text or '(all)'}" for name, text in texts.items())


def is_drawn_scan(scan: Scan) -> bool:
    """Return whether a scan holds a SEG or RTSTRUCT, according to its modality or type."""
    return _is_drawn(scan.modality, scan.type)


@lru_cache(maxsize=4096)
def _is_drawn(modality: str, type_: str) -> bool:
    return modality.upper() in _DRAWN_SCANS or type_.upper() in _DRAWN_SCANS


def is_usable(scan: Scan, settings: Settings) -> bool:
    """Return whether the quality of a drawn scan does not exclude it. Viewers set no quality: such a scan passes."""
    return not scan.quality or matches(settings.quality, scan.quality)


def _has_files(scan: Scan) -> bool:
    return any(found.file_count != 0 and not found.label.upper().startswith(OWN_RESOURCES) for found in scan.resources)


def _shown(settings: Settings, name: str) -> str:
    patterns = getattr(settings, name)
    return f"the setting {name}={getattr(patterns, 'text', '') or ','.join(patterns)!r}"


def _most_common(names: Iterable[str]) -> str:
    counts = Counter(name for name in names if name)
    if not counts:
        return "; XNAT knows none"
    shown = ", ".join(repr(name) for name, _ in counts.most_common(_SHOWN_NAMES))
    return f"; there are {shown}{', ...' if len(counts) > _SHOWN_NAMES else ''}"


def image_resources(scan: Scan, settings: Settings) -> list[Resource]:
    """Return the resources of a scan that may hold the image, the best first, without those known to be empty."""
    patterns = settings.image_resource
    filled = [found for found in scan.resources if found.file_count != 0 and image_rank(patterns, found.label)]
    return filled if len(filled) < 2 else sorted(filled, key=lambda resource: image_rank(patterns, resource.label))


@lru_cache(maxsize=4096)
def image_rank(patterns: tuple[str, ...], label: str) -> tuple[int, ...]:
    """Return the rank of a resource among those that are read as the image, or () if it is not read.

    A lower rank is better.

    Parameters
    ----------
    patterns : tuple of str
        As for :func:`~monailabel_xnat.config.patterns.matches`, the best first. If there are only exclusions, they are
        applied to the usual resources.
    label : str
        Label of the resource.
    """
    wanted = [pattern for pattern in patterns if not is_exclusion(pattern)] or _USUAL
    if label.upper().startswith(OWN_RESOURCES) or not matches(patterns, label):
        return ()
    usual = _USUAL.index(label.upper()) if label.upper() in _USUAL else len(_USUAL)
    # If several resources fit the same pattern, the one that comes first in the default order is better.
    return next(((place, usual) for place, pattern in enumerate(wanted) if matches((pattern,), label)), ())


def drawn_labels(scan: Scan, settings: Settings) -> list[Drawing]:
    """Return the drawings of other people that count as labels of an image; ROI collections with the oldest first."""
    if not scan.drawings or not settings.roi_tag:
        return []
    return [
        drawing
        for drawing in scan.drawings
        if is_label(drawing) and not drawing.is_ours and _is_chosen(drawing, settings)
    ]


def is_label(drawing: Drawing) -> bool:
    """Return whether a drawing is of a kind that can be read as a label map."""
    return drawing.kind in SUFFIXES


def is_of_unread_kind(drawing: Drawing) -> bool:
    """Return whether a ROI collection may hold a label, but is of a kind that this package does not read."""
    return bool(drawing.kind) and not is_label(drawing) and drawing.kind != _MEASUREMENTS


def may_be_drawn_label(drawing: Drawing, settings: Settings) -> bool:
    """Return whether a drawing that cannot be read may be a label, judged by what the listing shows."""
    is_kind = is_label(drawing) or is_of_unread_kind(drawing) or not drawing.kind
    return is_kind and not drawing.is_ours and _is_chosen(drawing, settings)


def _is_chosen(drawing: Drawing, settings: Settings) -> bool:
    return not settings.roi_label or matches(settings.roi_label, *drawing.names)
