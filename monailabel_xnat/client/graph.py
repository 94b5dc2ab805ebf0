"""The one place that turns image ids into objects of xnatpy, and objects into ids."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import xnat
from xnat.core import XNATBaseObject
from xnat.exceptions import XNATError, XNATResponseError
from xnat.mixin import ExperimentData, ImageScanData, ProjectData, SubjectData
from xnat.session import BaseXNATSession

from monailabel_xnat.client.answers import failure_of_transfer, plain
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import InvalidIdError, TransferError, UnknownLabelError, XNATDatastoreError
from monailabel_xnat.ids import ImageId

Result = TypeVar("Result")

XNATSession = BaseXNATSession
XNATScan = ImageScanData
Item = ProjectData | SubjectData | ExperimentData | ImageScanData

# The session in the address of a scan, which may start with a project and a subject; it may be percent-encoded.
_ADDRESS = re.compile(r"/experiments/(?P<experiment>[^/]+)/scans/")


class ScanPlace(NamedTuple):
    """The scan that an object stands for: the accession id (or label) of its session, and the scan's id there."""

    experiment: str
    scan: str


class Contents(NamedTuple):
    """The parts that the ids of all images in an object of xnatpy have in common; "" means any value."""

    project: str = ""
    subject: str = ""
    experiment: str = ""

    def holds(self, image: ImageId, owner: str) -> bool:
        """Return whether an image is in the object. A project holds what it owns and what is shared into it."""
        return (
            self.project in ("", image.project, owner)
            and self.subject in ("", image.subject)
            and self.experiment in ("", image.experiment)
        )


class Graph:
    """The object graph of one XNAT.

    xnatpy makes the classes of its objects from XNAT's data model. The model is loaded with the first object, because
    that takes about twenty requests and nothing that MONAI Label does needs it. xnatpy does not lock its objects and
    listings, so a lock here lets only one thread at a time use them.

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
        """The session of xnatpy with its data model: the one that was given as connection, or our own."""
        return self._ask("", self._with_model)

    def scan(self, path: str) -> ImageScanData:
        """Return the object of a scan.

        Parameters
        ----------
        path : str
            Path of the scan below the site's address, percent-encoded.

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
            Path of the scan or ROI collection to which it belongs; see :meth:`scan`.
        label : str
            Label of the resource.

        Raises
        ------
        NotInArchiveError, UnknownLabelError
            If there is no such scan or collection, or it has no such resource.
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
        """Yield the places that a scan object may stand for: first from its address, then from a request to XNAT.

        The address may not be enough: below a project it can contain the label of the session instead of its id.

        Raises
        ------
        InvalidIdError
            If the object belongs to another XNAT.
        """
        self._require_ours(scan)
        found = _ADDRESS.search(scan.uri)
        number = self._ask(scan.uri, lambda: str(scan.id))
        if found:
            yield ScanPlace(unquote(found["experiment"]), number)
        session = self._ask(scan.uri, lambda: str(scan.data.get("image_session_ID") or ""))
        yield ScanPlace(session, number)

    def contents_of(self, item: XNATBaseObject) -> Contents:
        """Return which images a project, subject or experiment holds.

        Raises
        ------
        InvalidIdError
            If the object is something else, or belongs to another XNAT.
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
        """Call a function that uses xnatpy's objects, one thread at a time, and raise failures as errors of ours.

        A session that was given as connection does not notice an expired login. If we can renew the login, the
        function is called a second time.
        """
        try:
            return self._ask_once(path, ask)
        except XNATResponseError as error:
            if self._session.owner is None or self._session.verify_login():
                raise failure_of_transfer(error, self.server + path) from None
        try:
            return self._ask_once(path, ask)
        except XNATResponseError as error:
            raise failure_of_transfer(error, self.server + path) from None

    def _ask_once(self, path: str, ask: Callable[[], Result]) -> Result:
        try:
            with self._lock:
                return ask()
        except XNATDatastoreError as error:
            raise plain(error) from error.__cause__
        except XNATResponseError:
            raise
        except (XNATError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TransferError(
                f"XNAT answered what xnatpy cannot read, when it was asked for {path}: {type(error).__name__}",
                hint="it may have broken off: try again",
                url=path,
            ) from error

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
    """Return whether an object is a scan of xnatpy."""
    return isinstance(item, ImageScanData)
