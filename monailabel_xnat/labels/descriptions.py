"""The descriptions of labels in XNAT: read once, believed only where proven, and changed in their info only."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from monailabel_xnat.catalog.listing import Scan
from monailabel_xnat.catalog.memory import Memory
from monailabel_xnat.client.files import RemoteFile, find_object, lost, read_object
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files
from monailabel_xnat.errors import NotInArchiveError
from monailabel_xnat.labels.form import require_description
from monailabel_xnat.labels.model import SIDECAR, LabelVersion
from monailabel_xnat.labels.sidecar import encode, info_of

_KIND = "label description"


class Descriptions:
    """Reads and changes the sidecar files.

    Parameters
    ----------
    session : Session
        The connection.
    memory : Memory
        Keeps what was read.
    """

    def __init__(self, session: Session, memory: Memory) -> None:
        self._session = session
        self._memory = memory
        self._lock = threading.Lock()
        self._read: dict[str, tuple[RemoteFile, dict[str, Any]]] = {}

    def read(self, scan: Scan, version: LabelVersion) -> dict[str, Any]:
        """Return the description of a version of a label of an image; {} if XNAT lists none.

        Raises
        ------
        MalformedFileError
            If it has not the form of a description, or is that of another label.
        TransferError
            If something else came than XNAT lists, or nothing.
        ServerError
            If XNAT fails.
        """
        file = version.sidecar_file
        if file is None:
            return {}
        with self._lock:
            known = self._read.get(file.uri)
        # The same size and digest; a change always shows in the size.
        if known is None or known[0] != file:
            known = (file, self._remembered(file) or self._fetch(scan, version, file))
            with self._lock:
                self._read[file.uri] = known
        return copy.deepcopy(known[1])

    def merge(
        self,
        scan: Scan,
        label: str,
        version: LabelVersion,
        changes: Mapping[str, Any],
        missing: Callable[[], dict[str, Any]],
    ) -> list[RemoteFile]:
        """Merge top-level keys into the info of a version, as XNAT holds it now; the caller holds the resource.

        Parameters
        ----------
        scan : Scan
            The image.
        label : str
            Label of the resource.
        version : LabelVersion
            The version.
        changes : mapping
            The keys.
        missing : callable
            Makes the description where XNAT holds none.

        Returns
        -------
        list of RemoteFile
            The files of the resource afterwards.

        Raises
        ------
        TransferError
            If the present description cannot be proven; nothing is written then.
        ServerError
            If XNAT fails.
        """
        name = version.name + SIDECAR
        check = partial(_checked, scan=scan, resource=label, digest=version.digest)
        found = find_object(self._session, scan.path, label, name, scan.counts(label), check)
        if found is None and version.sidecar_file is not None:
            raise lost(version.sidecar_file)
        file, sidecar = found or (None, missing())
        changed = {**sidecar, "info": {**info_of(sidecar), **changes}}
        content = encode(changed, previous_size=(file.size or 0) if file else None)
        upload = Upload(name, content, "JSON", "MONAILABEL")
        resource = resource_path(scan.path, label)
        listing = upload_files(self._session, resource, [upload], overwrite=file is not None)
        written = next(file for file in listing if file.path == name)
        with self._lock:
            self._read[written.uri] = (written, changed)
        self._remember(written, changed)
        return listing

    def _fetch(self, scan: Scan, version: LabelVersion, file: RemoteFile) -> dict[str, Any]:
        try:
            check = partial(_checked, scan=scan, resource=version.resource, digest=version.digest)
            sidecar = read_object(self._session, file, check)
        except NotInArchiveError as error:
            raise lost(file) from error
        self._remember(file, sidecar)
        return sidecar

    def _remember(self, file: RemoteFile, sidecar: dict[str, Any]) -> None:
        if file.size is not None:
            self._memory.put(_KIND, file.uri, _state(file), sidecar)

    def _remembered(self, file: RemoteFile) -> dict[str, Any] | None:
        sidecar = self._memory.get(_KIND, file.uri, _state(file)) if file.size is not None else None
        return sidecar if isinstance(sidecar, dict) else None


def _checked(sidecar: dict[str, Any], scan: Scan, resource: str, digest: str) -> dict[str, Any]:
    try:
        require_description(sidecar, scan, resource, digest)
    except ValueError as error:
        raise ValueError(f"{error}; if it stays so, restore_label() describes the label anew") from None
    return sidecar


def _state(file: RemoteFile) -> str:
    return f"{file.size} bytes, MD5 {file.md5}"
