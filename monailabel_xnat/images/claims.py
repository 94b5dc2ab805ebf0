"""Claims on images: which images were handed out as next samples, on all servers of a project.

XNAT has no locks, and it cannot compare before it writes. So a claim is a file with a name of its own in the resource
``MONAILABEL_info`` of the scan: ``claim-<when, UTC>-<who>.json``. A server writes its claim, and then lists the
resource. It has the image if there is no claim of another annotator. If two servers write at the same moment, each sees
the claim of the other, and neither has the image: the times in the names do not show who was first, because clocks
differ and writing may take long. A claim ends after the time in the setting ``claim_time``. Claims only guide the
choice of the next sample; no other operation is refused because of one.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import NamedTuple

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog import Catalog, Resource, Scan
from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.ids import ImageId

logger = logging.getLogger(__name__)

INFO_RESOURCE = "MONAILABEL_info"

_NAME = re.compile(r"claim-(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]+)\.json")
_FORM = "%Y%m%dT%H%M%S.%fZ"
# Seconds. The clocks of two machines may differ, so a claim may seem to come from the future.
_AHEAD = 300.0
# After a failure no claims are tried for this time (seconds), so that annotators need not wait for them.
_PAUSE = 60.0
_CONTENT = b"{}"


class Claim(NamedTuple):
    """When an image was handed out (seconds since 1970), and to whom (a digest)."""

    made: float
    owner: str

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"claim-{datetime.fromtimestamp(self.made, timezone.utc).strftime(_FORM)}-{self.owner}.json"


class Claims:
    """Makes claims, and knows the claims of others as far as they were listed.

    Parameters
    ----------
    session : Session
        The connection; its setting ``claim_time`` says how long a claim lasts.
    catalog : Catalog
        Gets what our own writes change.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._session = session
        self._catalog = catalog
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._known: dict[ImageId, tuple[Claim, ...]] = {}
        self._again_at = 0.0

    def note(self, image: ImageId, files: Iterable[RemoteFile]) -> None:
        """Note the claims among the files in the info resource of an image, except those that have ended."""
        claims = (_claim_of(file.path) for file in files)
        found = tuple(claim for claim in claims if claim and not self._has_ended(claim))
        with self._lock:
            if found:
                self._known[image] = found
            else:
                self._known.pop(image, None)

    def of_others(self, owner: str) -> dict[str, float]:
        """Return when images were last claimed by others (seconds since 1970), by id; makes no request."""
        with self._lock:
            for image in [image for image, claims in self._known.items() if all(map(self._has_ended, claims))]:
                del self._known[image]
            known = dict(self._known)
        lasting = {image: self._lasting(claims, owner) for image, claims in known.items()}
        return {str(image): max(claim.made for claim in claims) for image, claims in lasting.items() if claims}

    def take(self, scan: Scan, owner: str) -> Resource | None:
        """Claim an image, and return its info resource as XNAT holds it after that; None if another has claimed it.

        If XNAT does not answer, or this user may not write, the image is handed out without a claim. The resource is
        then returned as the listing shows it.
        """
        claim, shown = Claim(time.time(), owner), scan.resource(INFO_RESOURCE) or Resource(INFO_RESOURCE, 0, 0)
        if time.monotonic() < self._again_at:
            return shown
        try:
            path = resource_path(scan.path, INFO_RESOURCE)
            item = Upload(claim.file, _CONTENT, "JSON", "MONAILABEL")
            files = upload_files(self._session, path, [item], exists=bool(shown.file_count))
        except XNATDatastoreError as error:
            logger.warning("next samples are handed out without claims for a while: %s", type(error).__name__)
            logger.info("why there are no claims: %s", error)
            self._again_at = time.monotonic() + _PAUSE
            return shown
        self.note(scan.image_id, files)
        resource = Resource(INFO_RESOURCE, len(files), sum(file.size or 0 for file in files))
        self._catalog.put_resource(scan.image_id, resource)
        return None if self._lasting(self._known.get(scan.image_id, ()), owner) else resource

    @staticmethod
    def is_all_that_is_new(before: Resource | None, now: Resource) -> bool:
        """Return whether one claim is the only file that was added to a resource since it was listed."""
        known = before or Resource(INFO_RESOURCE, 0, 0)
        if known.file_count is None or known.file_size is None:
            return False
        return (now.file_count, now.file_size) == (known.file_count + 1, known.file_size + len(_CONTENT))

    def _lasting(self, claims: Iterable[Claim], owner: str) -> list[Claim]:
        """Return the claims of others that have not ended."""
        latest, theirs = time.time() + _AHEAD, [claim for claim in claims if claim.owner != owner]
        return [claim for claim in theirs if claim.made < latest and not self._has_ended(claim)]

    def _has_ended(self, claim: Claim) -> bool:
        return time.time() - claim.made >= self._session.settings.claim_time


def _claim_of(name: str) -> Claim | None:
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    made = datetime.strptime(found[1], _FORM).replace(tzinfo=timezone.utc)
    return Claim(made.timestamp(), found[2])
