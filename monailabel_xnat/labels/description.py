"""The description that is stored beside each label, as JSON.

``format_version``
    1.
``image_id``, ``tag``, ``series_uid``
    The image, the tag and the Series Instance UID that the label belongs to.
``saved_at``, ``saved_by``
    When the label was saved (UTC, ISO 8601), and by which XNAT user.
``source``
    ``model`` and ``model_version`` that made the label, ``client`` that sent it, and ``file_type`` (extension) of the
    file that was sent, as far as they are known.
``segments``
    For a label map, a list: ``value``, ``name``, ``colour`` (red, green, blue, 0 to 255, or null) and ``voxels`` (how
    many).
``geometry``
    For a label map: ``shape`` (i, j, k), ``affine`` (voxel index to RAS, mm) and ``orientation`` (such as ``LPS``).
``sha256``
    Hexadecimal digest of the label's file.
``notes``
    What was changed when the label was stored, such as the order of its axes.
``restored_from``
    If an earlier version was restored: the name of that version.
``info``
    MONAI Label's label info, unchanged. It is the only part that may change later.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog.read_cache import ReadCache
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.client.documents import find_object, plain, read_object, resized
from monailabel_xnat.client.files import RemoteFile, lost
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files
from monailabel_xnat.convert import LabelMap
from monailabel_xnat.convert.geometry import axis_codes
from monailabel_xnat.errors import InvalidIdError, LabelError, NotInArchiveError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.segments import segments_of, unnamed_values
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.version import DESCRIPTION, LabelVersion

FORMAT_VERSION = 1


def describe(
    scan: Scan,
    tag: str,
    info: Mapping[str, Any],
    *,
    label: LabelMap | None,
    file_type: str,
    configured: Mapping[str, int],
) -> dict[str, Any]:
    """Return the description of a label, without the parts that `completed` adds after its file is written.

    Parameters
    ----------
    scan : Scan
        The image.
    tag : str
        The label's tag.
    info : mapping
        The caller's label info, with plain JSON values.
    label : LabelMap or None
        The label map, on the grid of the image; None for the result of a task that is not a segmentation.
    file_type : str
        Extension of the file that was sent.
    configured : mapping of str to int
        Voxel value of each name in the settings.
    """
    params = info.get("params")
    params = params if isinstance(params, Mapping) else {}
    source = {
        "model": _first(info.get("model"), params.get("model")),
        "model_version": _first(info.get("model_version"), params.get("model_version")),
        "client": _first(info.get("client_id"), params.get("client_id")),
        "file_type": file_type,
    }
    segments = segments_of(label, info, configured) if label else []
    return {
        "format_version": FORMAT_VERSION,
        "image_id": str(scan.image_id),
        "tag": tag,
        "series_uid": scan.series_uid,
        "source": {key: value for key, value in source.items() if value},
        "segments": segments,
        "geometry": _geometry(label) if label else None,
        "notes": [*label.notes, *unnamed_values(label, segments, info, configured)] if label else [],
        "info": dict(info),
    }


def completed(description: Mapping[str, Any], *, sha256: str, saved_at: datetime, saved_by: str) -> dict[str, Any]:
    """Return a description with the facts that are known after the label is written.

    Parameters
    ----------
    description : mapping
        The description, from `describe`.
    sha256 : str
        Hexadecimal digest of the label's file.
    saved_at : datetime
        When the label was saved, with a time zone.
    saved_by : str
        XNAT's name of the user who saved it.
    """
    time = saved_at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    return {**description, "sha256": sha256, "saved_at": time, "saved_by": saved_by}


def placed(description: Mapping[str, Any], label: LabelMap, sha256: str) -> dict[str, Any]:
    """Return a new description for a label that was put on the grid of its image after it was described."""
    notes = [*description.get("notes", []), *label.notes]
    return {**description, "geometry": _geometry(label), "notes": notes, "sha256": sha256}


def encode(description: Mapping[str, Any], previous_size: int | None = None) -> bytes:
    """Return a description as JSON.

    Parameters
    ----------
    description : mapping
        The description.
    previous_size : int or None
        Size in bytes of the description that it replaces. The new one gets another size, because readers see a change
        by the size.
    """
    content = json.dumps(description, indent=1).encode()
    return content if previous_size is None else resized(content, previous_size)


def decode(content: bytes) -> dict[str, Any]:
    """Return a description from JSON.

    Raises
    ------
    ValueError
        If the content is not a JSON object.
    """
    description = json.loads(content)
    if not isinstance(description, dict):
        raise ValueError("it is no JSON object")
    return description


def plain_info(info: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a label info as plain JSON values.

    Raises
    ------
    LabelError
        If it cannot be stored as JSON.
    """
    try:
        facts = plain(info or {})
    except TypeError as error:
        raise LabelError(f"the label info cannot be stored: {error}", hint="use plain JSON values") from error
    if not isinstance(facts, dict):
        raise LabelError(f"the label info is a {type(info).__name__}, not a dictionary", hint='send {"name": value}')
    return facts


def info_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the label info in a description; {} if there is none."""
    info = description.get("info")
    return dict(info) if isinstance(info, Mapping) else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value), None)


def _geometry(label: LabelMap) -> dict[str, Any]:
    return {
        "shape": [int(size) for size in label.array.shape],
        "affine": [[float(value) for value in row] for row in label.affine],
        "orientation": axis_codes(label.affine),
    }


def require_description(description: Mapping[str, Any], scan: Scan, resource: str, digest: str) -> None:
    """Refuse content that is not the description of a certain label.

    Parameters
    ----------
    description : mapping
        What was read; :mod:`~monailabel_xnat.labels.description` shows the form that it must have.
    scan : Scan
        The image of the label.
    resource : str
        Label of the resource that holds the label.
    digest : str
        The first digits of the SHA-256 of the label's file, hexadecimal.

    Raises
    ------
    ValueError
        If it does not have the form of a description, or describes another label. The text says what is wrong.
    """
    for key, is_fine in _NEEDED.items():
        if key not in description:
            raise ValueError(f"{key} is missing")
        if not is_fine(description[key]):
            raise ValueError(f"{key} has a wrong type")
    for key, is_fine in _OPTIONAL.items():
        if key in description and not is_fine(description[key]):
            raise ValueError(f"{key} has a wrong type")
    if not description["sha256"].lower().startswith(digest):
        raise ValueError("it describes another label: its sha256 is not that of the file beside it")
    if resource_of(description["tag"]) != resource:
        raise ValueError(f"it describes a label with tag {description['tag']!r}")
    if not _is_of(description, scan):
        raise ValueError("it describes a label of another image")


def _is_of(description: Mapping[str, Any], scan: Scan) -> bool:
    """Return whether a description belongs to an image, by its series or by the ids of experiment and scan.

    A session that is copied or imported anew has other ids, but the same series.
    """
    series = description.get("series_uid")
    if series and series == scan.series_uid:
        return True
    try:
        image = ImageId.parse(description["image_id"])
    except InvalidIdError:
        return False
    return (image.experiment, image.scan) == (scan.image_id.experiment, scan.image_id.scan)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value.lower()) <= set("0123456789abcdef")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list_of(is_fine: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(is_fine, value))


def _is_segment(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_whole(value.get("value"))
        and _is_text(value.get("name"))
        and (value.get("colour") is None or _is_list_of(_is_number, 3)(value["colour"]))
        and (value.get("voxels") is None or _is_whole(value["voxels"]))
    )


def _is_geometry(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _is_list_of(_is_whole, 3)(value.get("shape"))
        and _is_list_of(_is_list_of(_is_number, 4), 4)(value.get("affine"))
    )


_NEEDED: Mapping[str, Callable[[Any], bool]] = {
    "format_version": _is_whole,
    "image_id": _is_text,
    "tag": _is_text,
    "sha256": _is_digest,
    "segments": _is_list_of(_is_segment),
    "info": _is_object,
}
_OPTIONAL: Mapping[str, Callable[[Any], bool]] = {
    "series_uid": lambda value: value is None or _is_text(value),
    "saved_at": _is_text,
    "saved_by": _is_text,
    "source": _is_object,
    "geometry": _is_geometry,
    "notes": _is_list_of(_is_text),
    "restored_from": _is_text,
}

_KIND = "label description"


class Descriptions:
    """Reads and changes the description files in XNAT.

    Parameters
    ----------
    session : Session
        The connection.
    read_cache : ReadCache
        Keeps descriptions that were read, on this disk.
    """

    def __init__(self, session: Session, read_cache: ReadCache) -> None:
        self._session = session
        self._read_cache = read_cache
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._read: dict[str, tuple[RemoteFile, dict[str, Any]]] = {}

    def read(self, scan: Scan, version: LabelVersion) -> dict[str, Any]:
        """Return the description of a version of a label; {} if XNAT lists none.

        Raises
        ------
        MalformedFileError
            If the file does not have the form of a description, or describes another label.
        TransferError
            If the file differs from XNAT's list, or is missing although XNAT lists it.
        ServerError
            If XNAT fails.
        """
        file = version.description_file
        if file is None:
            return {}
        with self._lock:
            known = self._read.get(file.uri)
        # An equal file has the same size and digest. Every change shows in the size; see `encode`.
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
        """Merge top-level keys into the info that XNAT holds now for a version.

        The caller holds the lock of the resource.

        Parameters
        ----------
        scan : Scan
            The image.
        label : str
            Label of the resource.
        version : LabelVersion
            The version.
        changes : mapping
            The keys with their new values.
        missing : callable
            Returns a new description; called if XNAT holds none.

        Returns
        -------
        list of RemoteFile
            The files of the resource afterwards.

        Raises
        ------
        TransferError
            If the present description differs in size or MD5 from XNAT's list; nothing is written then.
        ServerError
            If XNAT fails.
        """
        name = version.name + DESCRIPTION
        check = partial(_checked, scan=scan, resource=label, digest=version.digest)
        found = find_object(self._session, scan.path, label, name, scan.counts(label), check)
        if found is None and version.description_file is not None:
            raise lost(version.description_file)
        file, description = found or (None, missing())
        changed = {**description, "info": {**info_of(description), **changes}}
        content = encode(changed, previous_size=(file.size or 0) if file else None)
        upload = Upload(name, content, "JSON", "MONAILABEL")
        resource = resource_path(scan.path, label)
        files = upload_files(self._session, resource, [upload], overwrite=file is not None)
        written = next(file for file in files if file.path == name)
        with self._lock:
            self._read[written.uri] = (written, changed)
        self._remember(written, changed)
        return files

    def _fetch(self, scan: Scan, version: LabelVersion, file: RemoteFile) -> dict[str, Any]:
        try:
            check = partial(_checked, scan=scan, resource=version.resource, digest=version.digest)
            description = read_object(self._session, file, check)
        except NotInArchiveError as error:
            raise lost(file) from error
        self._remember(file, description)
        return description

    def _remember(self, file: RemoteFile, description: dict[str, Any]) -> None:
        if file.size is not None:
            self._read_cache.put(_KIND, file.uri, _state(file), description)

    def _remembered(self, file: RemoteFile) -> dict[str, Any] | None:
        description = self._read_cache.get(_KIND, file.uri, _state(file)) if file.size is not None else None
        return description if isinstance(description, dict) else None


def _checked(description: dict[str, Any], scan: Scan, resource: str, digest: str) -> dict[str, Any]:
    try:
        require_description(description, scan, resource, digest)
    except ValueError as error:
        raise ValueError(f"{error}; if it stays so, restore_label() describes the label anew") from None
    return description


def _state(file: RemoteFile) -> str:
    return f"{file.size} bytes, MD5 {file.md5}"
