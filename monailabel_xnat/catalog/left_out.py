"""The scans that are no images here, and why: asked for by people who miss one, and so not kept."""

from __future__ import annotations

import time

from monailabel_xnat.catalog.catalog import Catalog
from monailabel_xnat.catalog.listing import Names
from monailabel_xnat.catalog.projects import Projects, each_once
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.catalog.selection import Selection
from monailabel_xnat.client.session import Session

_IS_DRAWING = "its file is a drawing on other scans, and no image"
_IS_NEW = "it came while the images were listed; it is in the next listing"


def scans_left_out(session: Session, catalog: Catalog) -> list[tuple[Scan, str]]:
    """List the scans that are no images, each with the reason; asks XNAT for one more listing.

    Parameters
    ----------
    session : Session
        The connection; its settings say which projects, and which scans of them are images.
    catalog : Catalog
        The images.

    Returns
    -------
    list of (Scan, str)
        In the order in which XNAT lists them. The reason names each setting that leaves the scan out.

    Raises
    ------
    ServerError
        If a project cannot be listed now.
    """
    settings = session.settings
    catalog.scans()
    projects = Projects(session, catalog.read_cache, time.monotonic)
    listed = projects.list_all()
    for failure in listed.failing.values():
        raise failure
    shared: dict[str, list[Names]] = {}
    if settings.subject or settings.session:
        for project, scans in listed.scans.items():
            names = projects.listing.names(project) if any(scan.is_shared for scan in scans.values()) else {}
            for experiment, name in names.items():
                shared.setdefault(experiment, []).append(name)
    everything = each_once(listed.scans)
    reasons = Selection(settings).reasons(everything, shared)
    usual = {image: _IS_DRAWING if scan.is_untold else _IS_NEW for image, scan in everything.items()}
    return [
        (scan, "; ".join(reasons.get(image, (usual[image],))))
        for image, scan in everything.items()
        if image in reasons or catalog.get(image) is None
    ]
