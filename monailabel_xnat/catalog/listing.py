"""The listing of a project's scans: one request, whose rows are folded into scans while they arrive."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, TypeVar

from monailabel_xnat.catalog.scan import Resource, Scan, text_of_mark
from monailabel_xnat.client.answers import whole_number
from monailabel_xnat.client.items import list_session_names, read_project
from monailabel_xnat.client.rows import Row, read_sessions, walk
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import InvalidIdError, NotInArchiveError, ServerError
from monailabel_xnat.ids import ImageId, id_text

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_SCAN = "xnat:imagescandata/"


_TEXT_ONLY = frozenset({str})


class _Cells(NamedTuple):
    """The values of one row of the listing: there is one row per session x scan x resource."""

    experiment: str
    subject: str
    owner: str
    subject_label: str
    session_label: str
    session_type: str
    session_date: str
    session_added: str
    study_uid: str
    scan: str
    type: str
    series_description: str
    quality: str
    modality: str
    series_uid: str
    frames: str
    note: str
    resource: str
    file_count: str
    file_size: str


# XNAT returns the keys in lower case. UID is a short name of XNAT's, and comes back only under this name.
_KEYS = _Cells(
    experiment="ID",
    subject="xnat:imagesessiondata/subject_id",
    owner="project",
    subject_label="subject_label",
    session_label="label",
    session_type="xsiType",
    session_date="date",
    session_added="insert_date",
    study_uid="UID",
    scan=_SCAN + "id",
    type=_SCAN + "type",
    series_description=_SCAN + "series_description",
    quality=_SCAN + "quality",
    modality=_SCAN + "modality",
    series_uid=_SCAN + "uid",
    frames=_SCAN + "frames",
    note=_SCAN + "note",
    resource=_SCAN + "file/label",
    file_count=_SCAN + "file/file_count",
    file_size=_SCAN + "file/file_size",
)
_LOWER_KEYS = tuple(key.lower() for key in _KEYS)
_cells_of = itemgetter(*_KEYS)
# xsiType is not asked for: XNAT adds it, because the listed type is an abstract one.
_QUERY = {
    "xsiType": "xnat:imageSessionData",
    "columns": ",".join(key for key in _KEYS if key != _KEYS.session_type),
}
_SHARED_INTO = "xnat:imagesessiondata/sharing/share/project"
# The answers of servers that do not list scans together with the experiments of a project.
_NOT_JOINED = (400, 500)
_FAILED = 500
# Seconds for which such a server is asked in another way: at first, and at most.
_FIRST_DETOUR, _LONGEST_DETOUR = 60.0, 3600.0
# Scan types that do not say what the scan is, or that may mean a drawing.
_UNTOLD = ("", "unknown", "segmentation", "rt structure set", "rt struct", "structure set", "structure")
# The modality of a scan without one of its own, by the type of its session (xnat:petSessionData). For all other types
# it is the name in upper case.
_SESSION_MODALITIES = {"pet": "PT", "petmr": "PT", "otherDicom": ""}


class Names(NamedTuple):
    """The labels that a project gives to a session and its subject; the owner of a shared session may use others."""

    subject: str
    session: str


class _NotJoined(NamedTuple):
    """The pause, and the time of its end, during which a project's scans are not asked for with its experiments."""

    pause: float
    until: float


class Listing:
    """Lists the scans of projects, if possible in one request for each project.

    XNAT's list of the experiments in a project includes sessions that others share into it, and can join the scans of
    each session. Some servers do not join them there. Then the list of all experiments of the site is used, in two
    requests: one for the sessions that the project owns (XNAT compares only the owner), and one for those shared into
    it. If the server does not join scans there either, each session is asked by itself.

    Parameters
    ----------
    session : Session
        The connection.
    clock : callable
        Returns seconds that never decrease.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._not_joined: dict[str, _NotJoined] = {}

    def scans(self, project: str) -> dict[str, Scan]:
        """Return the scans of the sessions in a project by id, including sessions that are shared into it.

        Raises
        ------
        NotInArchiveError
            If there is no such project, or the user may not see it.
        AccessDeniedError
            If the user may see the project, but not its content.
        ServerError
            If XNAT fails.
        """
        known = self._not_joined.get(project)
        found = self._of_project(project) if known is None or self._clock() >= known.until else None
        if found is not None:
            self._not_joined.pop(project, None)
            return found
        scans = self._of_site(project) or fold(walk(self._session, project), project)
        if not scans:
            try:
                read_project(self._session, project)
            except NotInArchiveError as error:
                raise self._unknown(project, error) from None
        elif known is None or self._clock() >= known.until:
            # A server that fails for a moment answers like one that cannot join scans. The other way costs two lists of
            # the whole site, so the short way is tried again, after longer and longer pauses.
            pause = min(2 * known.pause, _LONGEST_DETOUR) if known else _FIRST_DETOUR
            self._not_joined[project] = _NotJoined(pause, self._clock() + pause)
        return scans

    def names(self, project: str) -> dict[str, Names]:
        """Return the labels that a project gives to its sessions, also to those shared into it, by experiment ID.

        The listing of :meth:`scans` shows only the labels that the owners of shared sessions use.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        rows = list_session_names(self._session, project)
        return {row.get("ID", ""): Names(row.get("subject_label") or "", row.get("label") or "") for row in rows}

    def _of_project(self, project: str) -> dict[str, Scan] | None:
        """Return the scans from the list of the project's experiments; None if the server does not join scans."""
        for pause in (next(self._session.backoff.pauses(), 0.0), None):
            try:
                found, is_joined = read_sessions(self._session, _QUERY, lambda rows: _folded(rows, project), project)
                return found if found or is_joined else None
            except NotInArchiveError as error:
                raise self._unknown(project, error) from None
            except ServerError as error:
                if error.status not in _NOT_JOINED:
                    raise
                if error.status != _FAILED or pause is None:
                    return None
                self._session.wait(pause, f"status {error.status}")
        return None

    def _of_site(self, project: str) -> dict[str, Scan]:
        """Return the scans from the list of the site's experiments; empty if the server does not join scans there."""
        try:
            owned, shared = (
                read_sessions(self._session, {**_QUERY, name: project}, lambda rows: fold(rows, project))
                for name in ("project", _SHARED_INTO)
            )
        except ServerError as error:
            if error.status not in _NOT_JOINED:
                raise
            return {}
        return {**owned, **{image: scan for image, scan in shared.items() if scan.owner != project}}

    def _unknown(self, project: str, error: NotInArchiveError) -> NotInArchiveError:
        return NotInArchiveError(
            f"XNAT has no project {project!r} that user {self._session.user!r} may see",
            hint="check the project's ID (not its title) and the user's access",
            url=error.url,
            status=error.status,
        )


def _folded(rows: Iterable[Row], project: str) -> tuple[dict[str, Scan], bool]:
    """Return scans made of rows, and whether the server joined scans; without rows this is taken as True."""
    remaining = iter(rows)
    first = next(remaining, None)
    if first is None:
        return {}, True
    return fold(chain([first], remaining), project), _KEYS.scan in {key.lower() for key in first}


def fold(rows: Iterable[Row], project: str) -> dict[str, Scan]:
    """Return the scans in the rows of a joined listing, which has one row per session x scan x resource.

    Parameters
    ----------
    rows : iterable of dict
        All values are texts. A session without scans, or a scan without resources, has one row with empty values.
    project : str
        The project in which the scans are listed.

    Returns
    -------
    dict of str to Scan
        The scans by id, in the order in which they are first listed. Equal values share one object.
    """
    scans: dict[str, Scan] = {}
    share: _OfFew[str] = _OfFew()
    number = _Numbers().__getitem__
    share_resources: _OfFew[tuple[Resource, ...]] = _OfFew()  # scans of one protocol often have equal ones
    session = _KEYS
    for row in rows:
        cells = _read(row)
        if not (cells.scan and cells.experiment and cells.subject):  # a session without scans, or without a subject
            continue
        text = id_text(project, cells.subject, cells.experiment, cells.scan)
        known = scans.get(text)
        resource = _resource(cells, share, number)
        if known is None:
            session = cells if cells.experiment != session.experiment else session
            resources = share_resources[(resource,) if resource else ()]
            scan = _scan(cells, session, project, resources, share, number)
            if scan is not None:
                scans[text] = scan
        elif resource is not None and known.resource(resource.label) != resource:
            scans[text] = known.with_resource(resource)
    return scans


class _OfFew(dict[Value, Value]):
    """A table of values that repeat often: it returns the same object for all equal values, to save memory."""

    def __missing__(self, value: Value) -> Value:
        self[value] = value
        return value


class _Numbers(dict[str, "int | None"]):
    """A table of numbers by their text, because counts and sizes repeat; None for a text that is not a number."""

    def __missing__(self, text: str) -> int | None:
        found = self[text] = whole_number(text)
        return found


def _read(row: Row) -> _Cells:
    """Return the values of a row; keys may be in upper or lower case. A value that XNAT does not have is ""."""
    try:
        values: tuple[str | None, ...] = _cells_of(row)
    except KeyError:
        values = tuple(map({key.lower(): value for key, value in row.items()}.get, _LOWER_KEYS))
    if _TEXT_ONLY.issuperset(map(type, values)):
        return _Cells._make(values)
    return _Cells._make([str(value) if isinstance(value, (str, int, float)) else "" for value in values])


def _scan(
    cells: _Cells,
    session: _Cells,
    project: str,
    resources: tuple[Resource, ...],
    share: _OfFew[str],
    number: Callable[[str], int | None],
) -> Scan | None:
    """Return the scan of a row, or None if its id cannot be used; its session is described by the session's first row.

    Taking it from there lets all scans of a session share these texts.
    """
    try:
        image = ImageId(project, session.subject, session.experiment, share[cells.scan])
    except InvalidIdError as error:
        logger.info("a scan is left out, for it could not be asked for: %s", error)
        return None
    return Scan(
        image_id=image,
        owner=share[cells.owner],
        subject_label=session.subject_label,
        session_label=session.session_label,
        session_type=share[cells.session_type],
        session_date=share[cells.session_date],
        type=share[cells.type],
        series_description=share[cells.series_description],
        quality=share[cells.quality],
        modality=share[cells.modality or _modality_of(cells.session_type)],
        series_uid=cells.series_uid,
        study_uid=session.study_uid,
        frames=number(cells.frames),
        resources=resources,
        mark=text_of_mark(cells.note),
        session_added=session.session_added,
        is_untold=not cells.modality and cells.type.lower() in _UNTOLD,
    )


def _resource(cells: _Cells, share: _OfFew[str], number: Callable[[str], int | None]) -> Resource | None:
    if not cells.resource:
        return None
    return Resource(share[cells.resource], number(cells.file_count), number(cells.file_size))


def _modality_of(session_type: str) -> str:
    name = session_type.partition(":")[2].replace("SessionData", "")
    return _SESSION_MODALITIES.get(name, name.upper())
