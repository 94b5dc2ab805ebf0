"""The projects whose images are listed: which exist, which were lost, and which cannot be listed now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import NamedTuple

from monailabel_xnat.catalog.listing import Listing
from monailabel_xnat.catalog.read_cache import Fact, ReadCache
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.client.items import list_projects
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, ServerError

logger = logging.getLogger(__name__)

# The errors for a project that was deleted, or that the user may not see any more.
_LOST = (AccessDeniedError, NotInArchiveError)
_KIND = "project"


class Listed(NamedTuple):
    """XNAT's answers about the projects.

    Parameters
    ----------
    scans : dict
        For each project that could be listed, its scans by id.
    lost : dict
        For each project that was deleted, or that the user may not see any more, the error.
    failing : dict
        For each project that could not be listed this time, the error. Its images that are known from before stay.
    """

    scans: dict[str, dict[str, Scan]]
    lost: dict[str, ServerError]
    failing: dict[str, ServerError]

    @property
    def error(self) -> ServerError | None:
        """The first error if no project could be listed; otherwise None."""
        reasons = [*self.failing.values(), *self.lost.values()]
        return reasons[0] if reasons and not self.scans else None

    @property
    def problem(self) -> str:
        """A text that says what is wrong; empty if nothing is wrong."""
        lost = [f"the images of project {project} are no longer served: {why}" for project, why in self.lost.items()]
        kept = [
            f"project {project} could not be listed, its images known before are used: {why}"
            for project, why in self.failing.items()
        ]
        return "; ".join([*lost, *kept])


class Projects:
    """Lists the images of the configured projects; if none is configured, of all projects that the user can read.

    Parameters
    ----------
    session : Session
        The connection. Its settings name the projects.
    read_cache : ReadCache
        Keeps on disk which projects this user has seen. A project that was never seen is probably misspelt, not lost.
    clock : callable
        Returns seconds that never decrease.
    """

    def __init__(self, session: Session, read_cache: ReadCache, clock: Callable[[], float]) -> None:
        self._session = session
        self._listing = Listing(session, clock)
        self._read_cache = read_cache
        self._seen: set[str] = set()
        self._warned: set[str] = set()

    @property
    def listing(self) -> Listing:
        """The object that lists a single project."""
        return self._listing

    def list_all(self) -> Listed:
        """Return the scans of all projects. They are listed one after the other: each listing is hard work for XNAT.

        Raises
        ------
        NotInArchiveError, AccessDeniedError
            If this user has never seen a configured project on this machine.
        ServerError
            If no project is configured, and XNAT fails to list the projects or one that was not listed before.
        """
        if self._session.settings.username:  # who has logged in: a server that does not answer leaves no file
            self._read_cache.open_soon()
        found = self._try_all()
        new = found.lost.keys() - self._warned
        if new:
            # One answer is not enough to stop serving a project. On an open site an expired login does not fail: it
            # reads as a guest, who sees fewer projects. And a proxy may answer 404 for a moment.
            if self._session.verify_login() and self._session.settings.project:
                again = self._try_each(sorted(new))  # the login was right, and so were the other answers
                found = Listed(
                    {**found.scans, **again.scans},
                    {project: why for project, why in found.lost.items() if project not in new} | again.lost,
                    {**found.failing, **again.failing},
                )
            else:
                found = self._try_all()
        self._note(found)
        return found

    def _try_all(self) -> Listed:
        configured = self._session.settings.project
        return self._try_each(configured) if configured else self._try_readable()

    def _try_each(self, projects: Collection[str]) -> Listed:
        found = Listed({}, {}, {})
        unreachable: ServerError | None = None
        for project in projects:
            if unreachable is not None:
                found.failing[project] = unreachable
                continue
            try:
                found.scans[project] = self._listing.scans(project)
            except _LOST as error:
                user = self._session.settings.username
                was_seen = project in self._seen or self._read_cache.get(_KIND, project, user)
                if not was_seen:
                    raise
                found.lost[project] = error
            except ServerError as error:
                found.failing[project] = error
                # If there was no answer at all, the other projects would only wait for the same server.
                unreachable = error if error.status is None else None
        return found

    def _try_readable(self) -> Listed:
        found = Listed({}, {}, {})
        readable = list_projects(self._session)
        for project in readable:
            try:
                found.scans[project] = self._listing.scans(project)
            except _LOST as error:
                if project in self._seen:
                    found.lost[project] = error
                else:  # a protected project: everybody may see that it exists, but not its content
                    logger.info("a project is left out: %s", error)
            except ServerError as error:
                if project not in self._seen:
                    raise
                found.failing[project] = error
        for project in sorted(self._seen.difference(readable)):
            found.lost[project] = NotInArchiveError(
                f"XNAT no longer lists project {project!r} for user {self._session.user!r}",
                hint="it was deleted, or the user may not see it any more",
            )
        if not readable:
            logger.warning("XNAT shows this user no project")
        return found

    def _note(self, found: Listed) -> None:
        new = found.scans.keys() - self._seen
        if self._session.settings.project:
            user = self._session.settings.username
            self._read_cache.put_all(_KIND, {project: Fact(user, True) for project in new})
        self._seen |= new
        for project, reason in found.lost.items():
            if project not in self._warned:
                logger.warning("the images of a project are no longer served: %s", reason)
        self._warned = set(found.lost)


def each_once(listings: dict[str, dict[str, Scan]]) -> dict[str, Scan]:
    """Return the scans of all projects by id, each scan once, even if several projects list it.

    It is taken from the project that owns it; if that is not listed, from the first project that lists it.
    """
    if len(listings) == 1:
        return next(iter(listings.values()))
    found: dict[tuple[str, str], tuple[str, Scan]] = {}
    listed = [(project, *item) for project, scans in listings.items() for item in scans.items()]
    owned = [(image, scan) for project, image, scan in listed if scan.owner == project]
    shared = [(image, scan) for _, image, scan in listed if scan.owner not in listings]
    for image, scan in owned + shared:
        found.setdefault((scan.image_id.experiment, scan.image_id.scan), (image, scan))
    return dict(found.values())
