"""Which versions of a label XNAT holds, asked only when the catalog shows that a resource has changed."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import NamedTuple

from monailabel_xnat.catalog import Catalog, Resource, Scan
from monailabel_xnat.client.files import RemoteFile, list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.model import LABEL_MAP, LabelVersion, versions_among

logger = logging.getLogger(__name__)

BUILT_IN_RESOURCE = "AI"
"""Where MONAI Label's built-in XNATDatastore leaves its labels, one NIfTI file for each model."""

# Sorts before everything that was saved by us, whenever others saved it.
_FOREIGN_TIME = "00000000T000000Z"
_NIFTI = (LABEL_MAP, ".nii")


class _Listing(NamedTuple):
    resource: Resource | None
    taken: float
    versions: list[LabelVersion]


class Versions:
    """The versions in XNAT, newest first.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Is told of our own writes.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._session = session
        self._catalog = catalog
        self._max_age = session.settings.max_age
        self._lock = threading.Lock()
        self._listings: dict[tuple[ImageId, str, str], _Listing] = {}

    def of(self, scan: Scan, resource: str, pattern: str = "") -> list[LabelVersion]:
        """List the versions in a resource of a scan; no request as long as the catalog shows no change.

        Parameters
        ----------
        scan : Scan
            The image.
        resource : str
            Label of the resource.
        pattern : str
            For a resource of others: which of its NIfTI files are labels. Empty: those named by us.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        known = self.known(scan, resource, pattern)
        if known is not None:
            return known
        files = list_files(self._session, resource_path(scan, resource))
        return self._remember(scan.image_id, scan.resource(resource), resource, files, pattern)

    def known(self, scan: Scan, resource: str, pattern: str = "") -> list[LabelVersion] | None:
        """Give the versions if they are known without a request."""
        shown = scan.resource(resource)
        if shown is None or shown.file_count == 0:
            return []
        with self._lock:
            listing = self._listings.get((scan.image_id, resource, pattern))
        if listing is None or listing.resource != shown:
            return None
        # Where XNAT has not counted, nothing shows a change.
        uncounted = shown.file_count is None or shown.file_size is None
        if uncounted and time.monotonic() - listing.taken > self._max_age:
            return None
        return list(listing.versions)

    def note(self, scan: Scan, resource: str, files: list[RemoteFile]) -> None:
        """Note what a resource holds after our own write, here and in the catalog."""
        shown = Resource(resource, len(files), sum(file.size or 0 for file in files))
        self._remember(scan.image_id, shown, resource, files)
        self._catalog.put_resource(scan.image_id, shown)

    def _remember(
        self, image: ImageId, shown: Resource | None, resource: str, files: list[RemoteFile], pattern: str = ""
    ) -> list[LabelVersion]:
        versions = self._foreign(files, pattern) if pattern else versions_among(files)
        with self._lock:
            self._listings[image, resource, pattern] = _Listing(shown, time.monotonic(), versions)
        return list(versions)

    def _foreign(self, files: list[RemoteFile], pattern: str) -> list[LabelVersion]:
        labels = [file for file in files if file.path.endswith(_NIFTI) and fnmatchcase(file.path, pattern)]
        if len(labels) > 1:
            labels.sort(key=lambda file: (self._modified(file), file.path), reverse=True)
        names = (f"{_FOREIGN_TIME}-{_identity(file)}" for file in labels)
        return [LabelVersion(name, LABEL_MAP, file) for name, file in zip(names, labels)]

    def _modified(self, file: RemoteFile) -> float:
        answer = self._session.request("HEAD", file.uri)
        try:
            return parsedate_to_datetime(answer.headers.get("Last-Modified", "")).timestamp()
        except (TypeError, ValueError):
            return 0.0


def resource_path(scan: Scan, resource: str) -> str:
    """Give the path of a resource of a scan."""
    return scan.path + quoted("resources", resource)


def _identity(file: RemoteFile) -> str:
    text = file.md5 or f"{file.path} {file.size}"
    return text[:12] if file.md5 else hashlib.sha256(text.encode()).hexdigest()[:12]
