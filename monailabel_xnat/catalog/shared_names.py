"""What projects call the sessions that are shared into them; their owners may call them otherwise."""

from __future__ import annotations

from monailabel_xnat.catalog.image_index import ImageIndex
from monailabel_xnat.catalog.listing import Listing, Names
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.ids import ImageId

Sharing = dict[str, dict[str, Names] | None]
"""By project, what it calls the sessions shared into it; None where nobody has needed to know yet."""


class SharedNames:
    """Finds images by the labels that a project gave to a session that is shared into it.

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

    def list(self, listings: dict[str, dict[str, Scan]]) -> Sharing:
        """Return the names that projects give to sessions shared into them; None for a project if not needed yet."""
        shared = [project for project, scans in listings.items() if any(scan.is_shared for scan in scans.values())]
        is_needed = self._settings.subject or self._settings.session
        return {project: self._listing.names(project) if is_needed else None for project in shared}

    def find(self, image: ImageId | str, images: ImageIndex) -> Scan | None:
        """Return an image by the labels that a project gives to a session that is shared into it."""
        try:
            wanted = image if isinstance(image, ImageId) else ImageId.parse(image)
        except InvalidIdError:
            return None
        if wanted.project not in self.into:
            return None
        names = self.into[wanted.project]
        if names is None:
            names = self.into[wanted.project] = self._listing.names(wanted.project)
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
    for names in sharing.values():
        for experiment, name in (names or {}).items():
            found.setdefault(experiment, []).append(name)
    return found
