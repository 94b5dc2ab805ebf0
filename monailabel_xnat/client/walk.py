"""The scans of a project, found by walking from session to session, where XNAT cannot list them all at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from monailabel_xnat.client.items import Fields, list_session_names, read_anywhere, read_subject
from monailabel_xnat.client.rows import Row
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, TransferError

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_NEWS = 10.0
_SCAN = "xnat:imagescandata/"
# What the joined listing calls what an item says of a scan, and of a resource of it.
_OF_SCAN = {
    "id": "ID",
    "type": "type",
    "series_description": "series_description",
    "quality": "quality",
    "modality": "modality",
    "uid": "UID",
    "frames": "frames",
    "note": "note",
}
_OF_RESOURCE = ("label", "file_count", "file_size")


def walk(session: Session, project: str) -> Iterator[Row]:
    """Yield the rows that the joined listing of a project would have, one per session x scan x resource.

    Each session takes a request, for its item holds its scans and their resources; xnatpy's objects of the same would
    ask for each scan and each of its resources as well. The log says how far it has come.

    Parameters
    ----------
    session : Session
        The connection.
    project : str
        ID of the project; sessions that are shared into it are walked to as well.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    names = list_session_names(session, project)
    logger.info("XNAT cannot list the scans of a project at once: asking for each of its %d sessions", len(names))
    next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS

    @cache
    def subject_label(subject: str) -> str:
        """Ask what the owner calls the subject of a shared session."""
        try:
            return str(read_subject(session, subject)["items"][0]["data_fields"].get("label") or "")
        except (NotInArchiveError, AccessDeniedError):
            return ""

    def rows_of(name: Fields) -> list[Row]:
        try:
            item = read_anywhere(session, name["ID"])["items"][0]
        except (NotInArchiveError, AccessDeniedError):  # gone since, or of a type that the user may not see
            return []
        fields = item["data_fields"]
        is_own = fields.get("project") == project
        own_label = name.get("subject_label") or ""
        label = own_label if is_own else subject_label(str(fields.get("subject_ID") or "")) or own_label
        return list(_rows(item, label))

    with ThreadPoolExecutor(session.settings.connections, thread_name_prefix="xnat-walk") as pool:
        try:
            for number, rows in enumerate(pool.map(rows_of, names), 1):
                yield from rows
                if time.monotonic() > next_news:
                    logger.info("%d of %d sessions of the project are read", number, len(names))
                    next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS
        except (KeyError, IndexError, TypeError, AttributeError):
            raise TransferError("XNAT described a session in a form that is not known", hint="try again") from None


def _rows(item: Mapping[str, Any], subject_label: str) -> Iterator[Row]:
    fields = item["data_fields"]
    session = {
        "ID": fields["ID"],
        "xnat:imagesessiondata/subject_id": fields.get("subject_ID"),
        "project": fields.get("project"),
        "subject_label": subject_label,
        "label": fields.get("label"),
        "xsiType": item["meta"]["xsi:type"],
        "date": fields.get("date"),
        "UID": fields.get("UID"),
    }
    for scan in _children(item, "scans/scan"):
        of_scan = {_SCAN + name: scan["data_fields"].get(field) for name, field in _OF_SCAN.items()}
        for resource in [child["data_fields"] for child in _children(scan, "file")] or [{}]:
            of_resource = {f"{_SCAN}file/{name}": resource.get(name) for name in _OF_RESOURCE}
            row = {**session, **of_scan, **of_resource}
            yield {key: "" if value is None else str(value) for key, value in row.items()}


def _children(item: Mapping[str, Any], field: str) -> list[Any]:
    return [node for child in item.get("children", ()) if child["field"] == field for node in child["items"]]
