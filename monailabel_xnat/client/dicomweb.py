"""Reading from the DICOMweb plugin of an XNAT, from which MONAI Label's OHIF viewer gets its images."""

from __future__ import annotations

from typing import NamedTuple

from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.errors import InvalidIdError

# Paths of the studies service (DICOM PS3.18) start with one of these. Other paths are refused.
_RESOURCES = ("studies", "series", "instances")
_UNSAFE = ("", ".", "..")
# 204 (nothing found) and 206 (a part of a body) are answers, not failures.
_ANSWERS = (200, 204, 206)


class DicomWebAnswer(NamedTuple):
    """An answer of XNAT, unchanged."""

    status: int
    media_type: str
    content: bytes


def root_of(project: str) -> str:
    """Return the path, below the site's address and percent-encoded, at which the plugin serves a project."""
    return quoted("xapi", "dicomweb", "projects", project)


def read_dicomweb(session: Session, root: str, path: str, query: str, accept: str) -> DicomWebAnswer:
    """Return the answer of XNAT's DICOMweb plugin (QIDO-RS, WADO-RS) to a GET with our login.

    Parameters
    ----------
    session : Session
        The connection.
    root : str
        Path of the DICOMweb service below the site's address, percent-encoded.
    path : str
        The path below ``root``, as plain text: ``studies/<UID>/series``.
    query : str
        The query exactly as the client wrote it, because its order and repetitions have a meaning.
    accept : str
        The media types that the client accepts; empty: all.

    Raises
    ------
    InvalidIdError
        If the path is not one of DICOMweb, or leads out of it.
    ServerError
        If XNAT fails.
    """
    words = path.rstrip("/").split("/")
    if words[0] not in _RESOURCES or any(word in _UNSAFE for word in words):
        raise InvalidIdError(
            f"{path!r} is no path of DICOMweb", hint=f"expected one that starts with {', '.join(_RESOURCES)}"
        )
    address = f"/{root.strip('/')}{quoted(*words)}" + (f"?{query}" if query else "")
    with session.stream(address, headers={"Accept": accept or "*/*"}, answers=_ANSWERS) as response:
        return DicomWebAnswer(response.status_code, response.headers.get("Content-Type", ""), response.content)
