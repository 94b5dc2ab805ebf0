"""xnatpy's objects and image ids: the one place where the one becomes the other."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import xnat
from xnat.core import XNATBaseObject
from xnat.exceptions import XNATResponseError
from xnat.mixin import ExperimentData, ImageScanData, ProjectData, SubjectData
from xnat.session import BaseXNATSession

from monailabel_xnat.client.answers import failure_of_transfer, plain
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import InvalidIdError, UnknownLabelError, XNATDatastoreError
from monailabel_xnat.ids import ImageId

Result = TypeVar("Result")

XNATSession = BaseXNATSession
XNATScan = ImageScanData
Item = ProjectData | SubjectData | ExperimentData | ImageScanData

# Where a scan stands in the address of an object, whatever comes before; labels and numbers may be percent-encoded.
_ADDRESS = re.compile(r"/experiments/(?P<experiment>[^/]+)/scans/")


class ScanPlace(NamedTuple):
    """Which scan an object stands for: accession id of its session, and its own id there."""

    experiment: str
    scan: str


class Contents(NamedTuple):
    """What an object of xnatpy holds: what stands in the ids of its images, "" for whatever."""

    project: str = ""
    subject: str = ""
    experiment: str = ""

    def holds(self, image: ImageId, owner: str) -> bool:
        """Return whether an image is one of these; a project holds what it owns and what is shared into it."""
        return (
            self.project in ("", image.project, owner)
            and self.subject in ("", image.subject)
            and self.experiment in ("", image.experiment)
        )


class Graph:
    """The object graph of one XNAT.

    XNAT's data model, from which xnatpy makes the classes of its objects, is loaded when the first object is asked
    for: it takes some twenty requests, and nothing that MONAI Label does needs it. xnatpy's objects and listings are
    made on demand and not locked, so that only one thread at a time is let at them here.

    Parameters
    ----------
    session : Session
        The connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()

    @property
    def server(self) -> str:
        """Address of the XNAT."""
        return self._session.settings.server

    @property
    def xnat(self) -> BaseXNATSession:
        """The session of xnatpy with its data model: the one that was given, else our own."""
        return self._ask("", self._with_model)

    def scan(self, path: str) -> ImageScanData:
        """Return the object of a scan.

        Parameters
        ----------
        path : str
            Where XNAT serves it: a path below the site's address, percent-encoded.

        Raises
        ------
        NotInArchiveError
            If XNAT does not have it any more.
        """
        return self._ask(path, lambda: self._object(path))

    def resource(self, path: str, label: str) -> Any:
        """Return the object of a resource.

        Parameters
        ----------
        path : str
            Of the scan or ROI collection that it belongs to; see :meth:`scan`.
        label : str
            Of the resource.

        Raises
        ------
        NotInArchiveError, UnknownLabelError
            If there is no such thing, or no such resource.
        """

        def find() -> Any:
            resources = self._object(path).resources
            resources.clearcache()
            return resources.get(label)

        found = self._ask(path, find)
        if found is None:
            raise UnknownLabelError(f"XNAT has no resource {label!r} at {path}", hint="refresh() shows what is new")
        return found

    def places_of(self, scan: ImageScanData) -> Iterator[ScanPlace]:
        """Yield which scan an object may stand for: by its address, then, after a request, by what XNAT says of it.

        Below a project the label of a session may stand in the address in place of its id.

        Raises
        ------
        InvalidIdError
            If it is one of another XNAT.
        """
        self._require_ours(scan)
        found = _ADDRESS.search(scan.uri)
        number = self._ask(scan.uri, lambda: str(scan.id))
        if found:
            yield ScanPlace(unquote(found["experiment"]), number)
        session = self._ask(scan.uri, lambda: str(scan.data.get("image_session_ID") or ""))
        yield ScanPlace(session, number)

    def contents_of(self, item: XNATBaseObject) -> Contents:
        """Return what a project, subject or experiment holds.

        Raises
        ------
        InvalidIdError
            If it is none of these, or one of another XNAT.
        """
        if not isinstance(item, (ProjectData, SubjectData, ExperimentData)):
            raise InvalidIdError(
                f"{type(item).__name__} holds no images", hint="give a project, subject or experiment of xnatpy"
            )
        self._require_ours(item)
        name = self._ask(item.uri, lambda: str(item.id))
        if isinstance(item, ProjectData):
            return Contents(project=name)
        return Contents(subject=name) if isinstance(item, SubjectData) else Contents(experiment=name)

    def _object(self, path: str) -> ImageScanData:
        return self._with_model().create_object(path)

    def _with_model(self) -> BaseXNATSession:
        xnat_session = self._session.owner or self._session.connection
        if xnat_session.classes is None:
            xnat.build_model(xnat_session, extension_types=True, connection_id=uuid.uuid4().hex)
        return xnat_session

    def _ask(self, path: str, ask: Callable[[], Result]) -> Result:
        """Ask objects for something, one thread at a time, and raise what goes wrong as errors of ours.

        A session that was given knows nothing of a login that has expired: where we can renew it, it is asked again.
        """
        try:
            with self._lock:
                return ask()
        except XNATDatastoreError as error:
            raise plain(error) from error.__cause__
        except XNATResponseError as error:
            if self._session.owner is None or self._session.verify_login():
                raise failure_of_transfer(error, self.server + path) from None
        try:
            with self._lock:
                return ask()
        except XNATResponseError as error:
            raise failure_of_transfer(error, self.server + path) from None

    def _require_ours(self, item: XNATBaseObject) -> None:
        session = item.xnat_session
        if session is None or session.interface is None:
            raise InvalidIdError(
                f"{type(item).__name__} of a session of xnatpy that is closed", hint="give an object of an open session"
            )
        if _place(session.server) != _place(self.server):
            raise InvalidIdError(
                f"{type(item).__name__} of {session.server}, but the images are those of {self.server}",
                hint="give an object of the same XNAT",
            )


def _place(server: str) -> tuple[str | None, int | None, str]:
    parts = urlsplit(server)
    return parts.hostname, parts.port, parts.path.rstrip("/")


def is_scan(item: object) -> bool:
    """Return whether something is a scan of xnatpy."""
    return isinstance(item, ImageScanData)
