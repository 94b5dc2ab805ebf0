"""DICOMweb of an XNAT with a plugin for it: what MONAI Label's OHIF reads images from."""

from __future__ import annotations

from typing import NamedTuple

from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.errors import InvalidIdError

# The resources of DICOM PS3.18 for studies; nothing else of XNAT is read in this way.
_RESOURCES = ("studies", "series", "instances")
_UNSAFE = ("", ".", "..")
# Nothing found, and a part of a body, are answers as well.
_ANSWERS = (200, 204, 206)


class DicomWebAnswer(NamedTuple):
    """What XNAT answered, as it was."""

    status: int
    media_type: str
    content: bytes


def root_of(project: str) -> str:
    """Return where the plugin serves a project: a path below the site's address, percent-encoded."""
    return quoted("xapi", "dicomweb", "projects", project)


def read_dicomweb(session: Session, root: str, path: str, query: str, accept: str) -> DicomWebAnswer:
    """Ask DICOMweb with our login (QIDO-RS, WADO-RS).

    Parameters
    ----------
    session : Session
        The connection.
    root : str
        Path of the DICOMweb service below the site's address, percent-encoded.
    path : str
        What to ask for below it, as plain text: ``studies/<UID>/series``.
    query : str
        The query as the client wrote it, for its order and repetitions count.
    accept : str
        The media types that the client takes.

    Raises
    ------
    InvalidIdError
        If the path is none of DICOMweb, or leads out of it.
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
