"""Scans that are not a volume. They are remembered with the reason, so that each is tried only once."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from monailabel_xnat import __version__
from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog.read_cache import Fact, ReadCache
from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.catalog.selection import image_resources
from monailabel_xnat.config import Settings
from monailabel_xnat.config.patterns import escaped
from monailabel_xnat.errors import ImageConversionError, ImageError, NoImageError

_KIND = "no volume"
_ERRORS: dict[str, type[ImageError]] = {
    kind.__name__: kind for kind in (ImageError, NoImageError, ImageConversionError)
}
# The findings of other processes are read this often (seconds).
_LOOKED_UP_EVERY = 30.0
# If the listing does not count files, it shows no change, so a finding counts for this time only (seconds).
_BELIEVED_FOR = 600.0
_NAMES_SHOWN = 3
_LEFT_OUT = "..."
_REPEATED = re.compile(r"\.\.\.(, \.\.\.)+( and \d+ more)?")
# Words in series descriptions that are typical for such scans.
_USUAL_WORDS = ("localizer", "localiser", "scout", "survey", "topogram", "screen")


class _Reason(NamedTuple):
    """Why a scan is not a volume, and what the listing showed at that time."""

    state: str
    error: tuple[str, str, str]
    noted: float
    """When this process found it out (monotonic clock); 0 if another process did."""


class NoVolumes:
    """Remembers the scans that cannot be used as an image.

    Parameters
    ----------
    settings : Settings
        The settings, which say which resources are images.
    read_cache : ReadCache
        Keeps the findings on this disk.
    """

    def __init__(self, settings: Settings, read_cache: ReadCache) -> None:
        self._settings = settings
        self._read_cache = read_cache
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._reasons: dict[str, _Reason] = {}
        self._looked_up = float("-inf")
        self._looked_at_again = float("-inf")

    def refuse(self, scan: Scan, resource: Resource, form: str) -> None:
        """Raise the noted error of a scan that is known not to be a volume.

        After :meth:`look_again` nothing is raised until the scan has been tried again.

        Raises
        ------
        ImageError
            The error that was noted, if the listing shows the scan unchanged.
        """
        reason = self._known().get(_key(scan, form))
        if reason is None or reason.noted <= self._looked_at_again or not self._holds(reason, scan, resource):
            return
        kind, message, hint = reason.error
        raise _ERRORS.get(kind, ImageError)(message, hint=hint)

    def note(self, scan: Scan, resource: Resource, form: str, error: ImageError) -> ImageError:
        """Remember that a scan is not a volume, and return the error to raise. Its message begins with the image id."""
        image = str(scan.image_id)
        message = error.message.replace(f" of scan {image}", "").replace(f"scan {image}", "the scan")
        hint = "; ".join(filter(None, (error.hint, _how_to_leave_out(scan))))
        kind = next((name for name, known in _ERRORS.items() if type(error) is known), ImageError.__name__)
        told = (kind, f"{image}: {message}", hint)
        state = self._state(scan, resource)
        with self._lock:
            self._reasons[_key(scan, form)] = _Reason(state, told, time.monotonic())
        if resource.state:
            self._read_cache.put(_KIND, _key(scan, form), state, told)
        return type(error)(told[1], hint=hint)

    def forget(self, scan: Scan, form: str) -> None:
        """Note that a scan is a volume after all."""
        with self._lock:
            was_known = self._reasons.pop(_key(scan, form), None)
        if was_known:
            self._read_cache.forget(_KIND, [_key(scan, form)])

    def look_again(self) -> None:
        """Mark all scans that are not a volume, so that each is tried again at its next use."""
        self._looked_at_again = time.monotonic()

    def reasons(self, form: str, find: Callable[[str], Scan | None]) -> dict[str, str]:
        """Return why scans are not a volume, by image id. A scan that the listing shows as changed is left out.

        Parameters
        ----------
        form : str
            The form of the images: ``nii``, ``nii.gz`` or ``dicom``.
        find : callable
            Returns a listed scan by its id, or None.
        """
        found = {}
        for key, reason in self._known().items():
            image, _, known_form = key.rpartition("|")
            scan = find(image) if known_form == form else None
            resources = image_resources(scan, self._settings) if scan else []
            if scan and resources and self._holds(reason, scan, resources[0]):
                _, message, hint = reason.error
                found[image] = f"{message} ({hint})"
        return found

    def close(self) -> None:
        """Close the read cache."""
        self._read_cache.close()

    def _holds(self, reason: _Reason, scan: Scan, resource: Resource) -> bool:
        if reason.state != self._state(scan, resource):
            return False
        return bool(resource.state) or time.monotonic() - reason.noted < _BELIEVED_FOR

    def _state(self, scan: Scan, resource: Resource) -> str:
        """Return the facts that, if they change, may turn a scan into a volume.

        These are what the listing shows, the mounted archive, which may hold other files than XNAT, and the release of
        this package, because a later one may read more.
        """
        seen = (resource.label, resource.file_count, resource.file_size, scan.frames, scan.series_uid)
        return "|".join(map(str, (*seen, self._settings.asset_path, __version__)))

    def _known(self) -> dict[str, _Reason]:
        """Return all known findings, also those of other processes on this machine."""
        now = time.monotonic()
        if now - self._looked_up >= _LOOKED_UP_EVERY:
            self._looked_up = now
            met = {key: _reason_of(fact) for key, fact in self._read_cache.all(_KIND).items()}
            with self._lock:
                self._reasons = {**{key: reason for key, reason in met.items() if reason}, **self._reasons}
        with self._lock:
            return dict(self._reasons)


def with_few_names(error: ImageError, names: Iterable[str]) -> ImageError:
    """Return the error with at most three names of files in its message.

    Parameters
    ----------
    error : ImageError
        The error.
    names : iterable of str
        The names of all files of the image.
    """
    ordered = sorted(set(names), key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in ordered) or r"(?!)")
    shown: set[str] = set()

    def shorten(found: re.Match[str]) -> str:
        if len(shown) < _NAMES_SHOWN:
            shown.add(found[0])
        return found[0] if found[0] in shown else _LEFT_OUT

    message = _REPEATED.sub(_LEFT_OUT, pattern.sub(shorten, error.message))
    return type(error)(message, hint=error.hint)


def _reason_of(fact: Fact) -> _Reason | None:
    content = fact.content
    if not isinstance(content, list) or len(content) != 3 or not all(isinstance(text, str) for text in content):
        return None
    return _Reason(fact.state, (content[0], content[1], content[2]), 0.0)


def _key(scan: Scan, form: str) -> str:
    return f"{scan.image_id}|{form}"


def _how_to_leave_out(scan: Scan) -> str:
    """Return a hint: the setting that leaves such scans out."""
    description = scan.series_description
    word = next((word for word in _USUAL_WORDS if word in description.lower()), "")
    if word or description:
        pattern = f"*{word}*" if word else escaped(description)
        return f'the setting series_description="!{pattern}" leaves such scans out'
    if scan.type:
        return f'the setting scan_type="!{escaped(scan.type)}" leaves such scans out'
    return "quality 'unusable' in XNAT leaves the scan out"
