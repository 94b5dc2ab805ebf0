"""The resources of scans that hold labels: finding the versions in them, and deleting or hiding versions.

XNAT is asked for a list only when the catalog shows that a resource has changed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog import Catalog, Resource, Scan
from monailabel_xnat.client.files import RemoteFile, list_files, list_whole, modified_at
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, remove_file, upload_files, writing
from monailabel_xnat.config.patterns import fits
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, ServerError, TransferError, XNATDatastoreError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.images.comparisons import Comparisons
from monailabel_xnat.labels.files import LabelFiles
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.version import LABEL_MAP, MARKS, LabelVersion, versions_among

logger = logging.getLogger(__name__)


BUILT_IN_RESOURCE = "AI"
"""The resource in which MONAI Label's built-in XNATDatastore stores its labels, one NIfTI file for each model."""

_KIND = "label files"
# Labels of other programs get this time, so that they sort before all versions of ours, whenever they were saved.
_FOREIGN_TIME = "00000000T000000Z"
_NIFTI = (LABEL_MAP, ".nii")


class _Known(NamedTuple):
    """The versions among the files of a resource, what the catalog showed of it, and when XNAT listed its files."""

    resource: Resource | None
    taken: float
    versions: list[LabelVersion]


class StoredVersions:
    """Lists the versions in XNAT.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Gets what our own writes change.
    on_learned : callable
        Called with the id of an image after a resource of it was listed. Its count of labels may change then, because
        the resource may hold no label at all.
    """

    def __init__(self, session: Session, catalog: Catalog, on_learned: Callable[[str], None]) -> None:
        self._session = session
        self._catalog = catalog
        self._read_cache = catalog.read_cache
        self._on_learned = on_learned
        self._max_age = session.settings.max_age
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._known: dict[tuple[ImageId, str, str], _Known] = {}
        self._comparisons = Comparisons(session.settings.verify_age)
        self._compared: dict[tuple[ImageId, str, str], float] = {}

    def of(self, scan: Scan, resource: str, pattern: str = "") -> list[LabelVersion]:
        """Return the versions in a resource of a scan, newest first, without a request while nothing has changed.

        Parameters
        ----------
        scan : Scan
            The image.
        resource : str
            Label of the resource.
        pattern : str
            For a resource of another program: which of its NIfTI files are labels. Empty for our own resources, in
            which labels are found by their names.

        Raises
        ------
        TransferError
            If XNAT lists fewer files than it counts.
        ServerError
            If XNAT fails and the versions are not known from before.
        """
        known = self.known(scan, resource, pattern)
        if known is None:
            shown = scan.resource(resource)
            remembered = self._remembered(scan, shown, resource, pattern)
            if remembered is not None:
                known = self._learn(scan.image_id, shown, resource, remembered, pattern)
        if known is not None and not self._is_due(scan, resource, pattern):
            return known
        return self._listed(scan, resource, pattern, known)

    def compare_anew(self, key: tuple[ImageId, str, str] | None = None) -> None:
        """Mark the files of other programs in a resource, so that they are listed again at their next use.

        Parameters
        ----------
        key : tuple or None
            Image, label of the resource, and pattern. None means all.
        """
        self._comparisons.expire(None if key is None else [key])

    def require_compared(self, scan: Scan) -> None:
        """Refuse labels of other programs on an image if XNAT could not say whether they are still the same.

        Raises
        ------
        ServerError
            The error that XNAT answered with.
        """
        for key, failure in self._comparisons.failures().items():
            if isinstance(key, tuple) and key[0] == scan.image_id:
                raise failure

    def known(self, scan: Scan, resource: str, pattern: str = "") -> list[LabelVersion] | None:
        """Return the versions, newest first, if they are known without a request; else None."""
        shown = scan.resource(resource)
        if shown is None or shown.file_count == 0:
            return []
        with self._lock:
            found = self._known.get((scan.image_id, resource, pattern))
        if found is None or found.resource != shown:
            return None
        # If XNAT has not counted the files, the catalog cannot show a change.
        uncounted = shown.file_count is None or shown.file_size is None
        if uncounted and time.monotonic() - found.taken > self._max_age:
            return None
        return list(found.versions)

    def note(self, scan: Scan, resource: str, files: list[RemoteFile]) -> None:
        """Note the files that a resource holds after our own write, here and in the catalog."""
        shown = Resource(resource, len(files), sum(file.size or 0 for file in files))
        self._note(scan.image_id, shown, resource, files)
        self._catalog.put_resource(scan.image_id, shown)

    def forget(self, scan: Scan) -> bool:
        """Forget what the resources of an image hold, because XNAT holds something else.

        Returns
        -------
        bool
            Whether anything was known.
        """
        with self._lock:
            wrong = [key for key in self._known if key[0] == scan.image_id]
            for key in wrong:
                del self._known[key]
        self._read_cache.forget(_KIND, [_key(*key) for key in wrong])
        return bool(wrong)

    def _is_due(self, scan: Scan, resource: str, pattern: str) -> bool:
        """Return whether it is time to compare the files of another program with XNAT, as they may have been replaced.

        Our own files are never replaced, because their names contain the digest of their content.
        """
        shown, key = scan.resource(resource), (scan.image_id, resource, pattern)
        if not pattern or shown is None or shown.file_count == 0:
            return False
        return self._comparisons.is_due(key, "", self._compared.get(key, 0.0))

    def _listed(self, scan: Scan, resource: str, pattern: str, known: list[LabelVersion] | None) -> list[LabelVersion]:
        key, comparison = (scan.image_id, resource, pattern), self._comparisons.begin()
        try:
            files = list_whole(self._session, scan.path, resource, scan.counts(resource))
        except (AccessDeniedError, NotInArchiveError, TransferError):
            raise
        except ServerError as error:
            if known is None:
                raise
            self._comparisons.postpone(key, error)
            logger.warning("labels could not be compared with XNAT, those here are used: %s", type(error).__name__)
            return known
        self._comparisons.note(key, "", comparison)
        self._compared[key] = comparison.begun
        return self._note(scan.image_id, scan.resource(resource), resource, files, pattern)

    def _note(
        self, image: ImageId, shown: Resource | None, resource: str, files: Sequence[RemoteFile], pattern: str = ""
    ) -> list[LabelVersion]:
        """Note the files that XNAT has just listed, in memory and on the disk, and return the versions among them."""
        if pattern:
            files = self._newest_first(files, pattern)
        if shown is not None and shown.state:
            content: Any = [(file.path, file.size, file.md5, file.uri) for file in files]
            if pattern:
                content = {"files": content, "compared": self._compared.get((image, resource, pattern), 0.0)}
            self._read_cache.put(_KIND, _key(image, resource, pattern), shown.state, content)
        return self._learn(image, shown, resource, files, pattern)

    def _learn(
        self, image: ImageId, shown: Resource | None, resource: str, files: Sequence[RemoteFile], pattern: str
    ) -> list[LabelVersion]:
        versions = _foreign(files) if pattern else versions_among(files)
        with self._lock:
            self._known[image, resource, pattern] = _Known(shown, time.monotonic(), versions)
        self._on_learned(str(image))
        return list(versions)

    def _remembered(self, scan: Scan, shown: Resource | None, resource: str, pattern: str) -> list[RemoteFile] | None:
        """Return the files that another or an earlier process listed when the catalog's listing was the same as now."""
        if shown is None or not shown.state:
            return None
        content = self._read_cache.get(_KIND, _key(scan.image_id, resource, pattern), shown.state)
        if isinstance(content, dict):
            self._compared[scan.image_id, resource, pattern] = float(content["compared"])
            content = content["files"]
        return [RemoteFile(*file) for file in content] if isinstance(content, list) else None

    def _newest_first(self, files: Sequence[RemoteFile], pattern: str) -> list[RemoteFile]:
        labels = [file for file in files if file.path.endswith(_NIFTI) and fits(pattern, file.path)]
        if len(labels) > 1:
            labels.sort(key=lambda file: (self._modified(file), file.path), reverse=True)
        return labels

    def _modified(self, file: RemoteFile) -> float:
        stored = modified_at(self._session, file)
        return stored.timestamp() if stored else 0.0


def _key(image: ImageId, resource: str, pattern: str) -> str:
    return f"{image} {resource} {pattern}"


def _foreign(labels: Sequence[RemoteFile]) -> list[LabelVersion]:
    """Return the label files of another program as versions, which are named after the content as far as XNAT tells."""
    identities = [(file.md5 or text_digest(f"{file.path} {file.size}"))[:12] for file in labels]
    return [
        LabelVersion(f"{_FOREIGN_TIME}-{identity}", LABEL_MAP, file)
        for identity, file in zip(identities, labels, strict=True)
    ]


class Deletion:
    """Deletes versions that this package wrote, which it knows by their names; hides them if the user may not delete.

    Members of an XNAT project may write, but not delete. A version that they remove is hidden: a file
    ``<version>.hidden.json`` is stored beside it. The version is kept, but it does not count as a label any more.

    Parameters
    ----------
    session : Session
        The connection.
    versions : StoredVersions
        Gets the list of files that are left.
    files : LabelFiles
        Removes the local files of deleted versions.
    """

    def __init__(self, session: Session, versions: StoredVersions, files: LabelFiles) -> None:
        self._session = session
        self._versions = versions
        self._files = files

    def delete(self, scan: Scan, tag: str, keep: int = 0) -> list[LabelVersion]:
        """Delete all versions of a label except for the newest ``keep``, and return the deleted ones, newest first.

        Raises
        ------
        AccessDeniedError
            If the user may not delete.
        TransferError
            If XNAT still has versions that it said it deleted.
        ServerError
            If XNAT fails.
        """
        label = resource_of(tag)
        resource = resource_path(scan.path, label)
        with writing(self._session.settings, resource):
            files = list_whole(self._session, scan.path, label, scan.counts(label))
            old = versions_among(files)[keep:]
            for version in reversed(old):  # the newest last: if XNAT fails midway, the image still has its label
                for file in (version.description_file, version.file, *version.marks):
                    if file is not None:
                        remove_file(self._session, file, files)
                        files = [other for other in files if other.path != file.path]
                self._files.discard(scan.image_id, tag, version)
            if old:
                left = list_files(self._session, resource)
                self._versions.note(scan, label, left)
                gone = {version.name for version in old}
                kept = [version.name for version in versions_among(left) if version.name in gone]
                if kept:
                    raise TransferError(
                        f"XNAT said that it deleted {len(old)} versions of label {tag!r}, but still has {len(kept)}",
                        hint="try again; if it stays, see the log of the XNAT server",
                        url=resource,
                    )
        return old

    def delete_or_hide(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """Delete all versions of a label, or hide them if the user may write but not delete, and return them.

        Raises
        ------
        AccessDeniedError
            If the user may neither delete nor write.
        ServerError
            If XNAT fails.
        """
        try:
            return self.delete(scan, tag)
        except AccessDeniedError as error:
            logger.info("a label is hidden, not deleted: %s", error.message)
            try:
                return self.hide(scan, tag)
            except AccessDeniedError:
                raise error from None

    def hide(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """Hide all versions of a label that are not hidden yet, and return them.

        Raises
        ------
        AccessDeniedError
            If the user may not write.
        ServerError
            If XNAT fails.
        """
        label = resource_of(tag)
        resource = resource_path(scan.path, label)
        with writing(self._session.settings, resource):
            files = list_whole(self._session, scan.path, label, scan.counts(label))
            shown = [version for version in versions_among(files) if not version.is_hidden]
            if shown:
                names = [version.name + MARKS[0] for version in shown]
                # Other servers see only the number of files, and look into resources where it is odd. Make it odd.
                if (len(files) + len(names)) % 2 == 0:
                    names.append(shown[0].name + MARKS[1])
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                content = json.dumps({"hidden_at": now, "hidden_by": self._session.user}).encode()
                marks = [Upload(name, content, "JSON", "MONAILABEL") for name in names]
                self._versions.note(scan, label, upload_files(self._session, resource, marks, overwrite=True))
        return shown

    def prune(self, scan: Scan, tag: str, keep: int) -> None:
        """Delete all versions except for the newest ``keep``. If that fails they stay, and the log says so."""
        try:
            self.delete(scan, tag, keep)
        except AccessDeniedError as error:
            logger.info("earlier versions stay: %s", error)
        except XNATDatastoreError as error:
            logger.warning("earlier versions of a label could not be deleted: %s", type(error).__name__)
