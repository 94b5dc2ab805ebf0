"""Deleting versions of a label in XNAT, and nothing else that lies beside them."""

from __future__ import annotations

import logging

from monailabel_xnat.catalog import Scan
from monailabel_xnat.client.files import list_files, list_whole
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import remove_file, writing
from monailabel_xnat.errors import AccessDeniedError, TransferError, XNATDatastoreError
from monailabel_xnat.labels.files import LabelFiles
from monailabel_xnat.labels.model import LabelVersion, versions_among
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.versions import Versions, resource_path

logger = logging.getLogger(__name__)


class Deletion:
    """Deletes what this library wrote; the name tells.

    Parameters
    ----------
    session : Session
        The connection.
    versions : Versions
        Is told of what is left.
    files : LabelFiles
        Forgets the files of what was deleted.
    """

    def __init__(self, session: Session, versions: Versions, files: LabelFiles) -> None:
        self._session = session
        self._versions = versions
        self._files = files

    def delete(self, scan: Scan, tag: str, keep: int = 0) -> list[LabelVersion]:
        """Delete all versions of a label but the newest ``keep``, and tell which they were.

        Raises
        ------
        AccessDeniedError
            If the user may not delete.
        ServerError
            If XNAT fails.
        """
        label = resource_of(tag)
        resource = resource_path(scan, label)
        with writing(self._session.settings, resource):
            listing = list_whole(self._session, scan.path, label, scan.counts(label))
            old = versions_among(listing)[keep:]
            for version in reversed(old):  # the newest last: if XNAT stops midway, the label is still there
                for file in (version.sidecar_file, version.file):
                    if file is not None:
                        remove_file(self._session, file, listing)
                        listing = [other for other in listing if other.path != file.path]
                self._files.discard(scan.image_id, tag, version)
            if old:
                left = list_files(self._session, resource)
                self._versions.note(scan, label, left)
                gone = {version.name for version in old}
                kept = [version.name for version in versions_among(left) if version.name in gone]
                if kept:
                    raise TransferError(
                        f"XNAT said that it deleted {len(old)} versions of the label {tag!r}, but has {len(kept)}",
                        hint="try again; if it stays, see the log of the XNAT server",
                        url=resource,
                    )
        return old

    def prune(self, scan: Scan, tag: str, keep: int) -> None:
        """Delete the versions beyond the newest ``keep``; where that is not possible, they stay."""
        try:
            self.delete(scan, tag, keep)
        except AccessDeniedError as error:
            logger.info("earlier versions stay: %s", error)
        except XNATDatastoreError as error:
            logger.warning("earlier versions of a label could not be deleted: %s", type(error).__name__)
