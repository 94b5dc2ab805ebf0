"""The sessions that are shared into projects, and what these call them; their owners may call them otherwise."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

from monailabel_xnat.catalog.image_index import ImageIndex
from monailabel_xnat.catalog.listing import Listing, Names
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.ids import ImageId


class Shared(NamedTuple):
    """The sessions that others share into a project.

    Parameters
    ----------
    sessions : frozenset of str
        Their accession IDs.
    names : dict or None
        What the project calls them, by accession ID; None if nobody has needed to know that yet.
    """

    sessions: frozenset[str] = frozenset()
    names: dict[str, Names] | None = None


Sharing = dict[str, Shared]
"""What others share into each project that is listed."""


class SharedNames:
    """Finds the images that are shared into a project, also by the labels that it gave to their sessions.

    Parameters
    ----------
    settings : Settings
        Whose filters may look at these labels.
    listing : Listing
        Asks XNAT for them.
    """

    def __init__(self, settings: Settings, listing: Listing) -> None:
        self._settings = settings
        self._listing = listing
        self.into: Sharing = {}
        """What is known now."""

    def list(self, listings: Mapping[str, Mapping[str, Scan]], failing: Container[str]) -> Sharing:
        """Return what is shared into each project; names only if the filters need them.

        Parameters
        ----------
        listings : mapping
            For each project, its scans by id.
        failing : container of str
            The projects that could not be listed this time: what was known of them stays.
        """
        is_needed = self._settings.subject or self._settings.session
        found: Sharing = {}
        for project, scans in listings.items():
            sessions = frozenset(scan.image_id.experiment for scan in scans.values() if scan.is_shared)
            if project in failing and project in self.into:
                sessions = self.into[project].sessions
            found[project] = Shared(sessions, self._listing.names(project) if sessions and is_needed else None)
        return found

    def images_of(self, project: str, images: ImageIndex) -> Iterator[Scan]:
        """Yield the images in a project: those that it owns, and those that others share into it.

        XNAT is asked only about a project that is not listed: images of listed projects may be shared into it.

        Raises
        ------
        NotInArchiveError
            If there is no such project, or the user may not see it.
        ServerError
            If XNAT fails.
        """
        known = self.into.get(project)
        sessions = known.sessions if known is not None else self._listing.names(project).keys()
        for scan in images.scans():
            if project in (scan.image_id.project, scan.owner) or scan.image_id.experiment in sessions:
                yield scan

    def find(self, image: ImageId | str, images: ImageIndex) -> Scan | None:
        """Return an image by the labels that a project gives to a session that is shared into it."""
        try:
            wanted = image if isinstance(image, ImageId) else ImageId.parse(image)
        except InvalidIdError:
            return None
        shared = self.into.get(wanted.project)
        if shared is None or not shared.sessions:
            return None
        names = shared.names
        if names is None:
            names = self._listing.names(wanted.project)
            self.into[wanted.project] = shared._replace(names=names)
        for experiment, name in names.items():
            if name.session == wanted.experiment:
                # The ID finds the session in any project. The subject may have a name of its own in each project.
                found = images.by_session(experiment, wanted.scan)
                if found and wanted.subject in (name.subject, found.subject_label, found.image_id.subject):
                    return found
        return None


def by_session(sharing: Sharing) -> dict[str, list[Names]]:
    """Return what is known of sharing by the accession ID of each session."""
    found: dict[str, list[Names]] = {}
    for shared in sharing.values():
        for experiment, name in (shared.names or {}).items():
            found.setdefault(experiment, []).append(name)
    return found
