"""The one place that turns image ids into objects of xnatpy, and objects into ids."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import requests
import xnat
from xnat.core import XNATBaseObject
from xnat.exceptions import XNATError, XNATObjectDestroyedError, XNATResponseError
from xnat.mixin import ExperimentData, ImageScanData, ProjectData, SubjectData
from xnat.session import BaseXNATSession

from monailabel_xnat.client.answers import failure_of_transfer, network_failure, plain
from monailabel_xnat.client.deadlines import is_timeout
from monailabel_xnat.client.pace import MAY_BE_REPEATED_NOW
from monailabel_xnat.client.patience import may_pass
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import InvalidIdError, TransferError, UnknownLabelError, XNATDatastoreError
from monailabel_xnat.ids import ImageId, id_text

Result = TypeVar("Result")

XNATSession = BaseXNATSession
XNATScan = ImageScanData
Item = ProjectData | SubjectData | ExperimentData | ImageScanData

# The parts of the address of a scan, which may start with a project and a subject; they may be percent-encoded.
_ADDRESS = re.compile(
    r"(?:/projects/(?P<project>[^/]+))?(?:/subjects/(?P<subject>[^/]+))?"
    r"/experiments/(?P<experiment>[^/]+)/scans/(?P<scan>.+)"
)


class ScanPlace(NamedTuple):
    """The scan that an object stands for: accession id (or label) of its session, the scan's id there, its subject.

    ``subject`` is an accession id or a label; "" if it is not known.
    """

    experiment: str
    scan: str
    subject: str = ""


class Contents(NamedTuple):
    """What the images in an object of xnatpy have in common: a project, a subject or an experiment, by its id."""

    project: str = ""
    subject: str = ""
    experiment: str = ""

    def holds(self, image: ImageId) -> bool:
        """Return whether an image is in the subject or experiment. Its id does not show all of its projects."""
        return self.subject in ("", image.subject) and self.experiment in ("", image.experiment)


class Graph:
    """The object graph of one XNAT.

    xnatpy makes the classes of its objects from XNAT's data model. The model is loaded with the first object, because
    that takes about twenty requests and nothing that MONAI Label does needs it. xnatpy does not lock its objects and
    listings, so only one thread at a time uses them here.

    Parameters
    ----------
    session : Session
        The connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

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

        The address may not be enough: below a subject it can contain the label of the session instead of its id, and
        that label may be the id of another subject's session.

        Raises
        ------
        InvalidIdError
            If the object belongs to another XNAT, or its scan was deleted with it.
        """
        self._require_ours(scan)
        found = _ADDRESS.search(scan.uri)
        number = self._ask(scan.uri, lambda: str(scan.id))
        if found:
            yield ScanPlace(unquote(found["experiment"]), number, unquote(found["subject"] or ""))
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
        """Call a function that reads from xnatpy's objects, one thread at a time; raise failures as errors of ours.

        Below a session that somebody else has opened, there is no guard. So it is checked here that it may be used, and
        the function is called again after a failure that may pass, or if the login had expired and could be renewed.
        """
        url, is_given = self.server + path, self._session.owner is not None
        pauses = self._session.backoff.pauses()
        may_log_in = is_given
        while True:
            if is_given:
                self._session.require_owner()
            try:
                with self._session.connection.lock:
                    return ask()
            except XNATDatastoreError as error:
                raise plain(error) from error.__cause__
            except requests.RequestException as error:
                pause = None if is_timeout(error) or not may_pass(error) else next(pauses, None)
                if pause is None:
                    raise network_failure(error, url) from error
                self._session.wait(pause, type(error).__name__)
            except XNATResponseError as error:
                pause = next(pauses, None) if error.status_code in MAY_BE_REPEATED_NOW else None
                if pause is not None:
                    self._session.wait(pause, f"status {error.status_code}")
                elif may_log_in and not self._session.verify_login():
                    may_log_in = False
                else:
                    raise failure_of_transfer(error, url) from None
            except (XNATError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise TransferError(
                    f"XNAT answered what xnatpy cannot read, when it was asked for {path}: {type(error).__name__}",
                    hint="it may have broken off: try again",
                    url=path,
                ) from error

    def _require_ours(self, item: XNATBaseObject) -> None:
        try:
            session = item.xnat_session if item.uri else None
        except XNATObjectDestroyedError:
            raise InvalidIdError(f"{type(item).__name__} of something that was deleted") from None
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


def name_of(image: str | ImageScanData) -> str:
    """Return a text as it is, and for a scan the image id that its address says, or its address; nothing is asked.

    Texts that xnatpy itself makes of its objects may need a request.
    """
    if isinstance(image, str) or not is_scan(image):
        return str(image)
    try:
        address = image.uri
    except XNATObjectDestroyedError:
        return type(image).__name__
    parts = [unquote(part or "") for part in found.groups()] if (found := _ADDRESS.search(address)) else []
    return id_text(*parts) if parts and all(parts) else address
