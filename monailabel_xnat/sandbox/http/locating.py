"""Archive addresses as parameters and custom fields write them: they may leave out the subject."""

from __future__ import annotations

from urllib.parse import unquote

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.http.replies import HTTPError
from monailabel_xnat.sandbox.http.request import Finder, Target

_INSIDE_SESSION = ("scans", "assessors")


def locate(archive: Archive, may: Permissions, words: list[str]) -> Target:
    """Find what ``projects/P/experiments/E/scans/S`` or any other path names.

    Parameters
    ----------
    archive, may
        Where, and for whom.
    words
        The segments, still percent-encoded.

    Raises
    ------
    HTTPError
        404 where there is no such thing, or not for this user.
    """
    if words[:1] == ["projects"] and words[2:3] == ["experiments"] and words[4:5] and words[4] in _INSIDE_SESSION:
        session = Finder(archive, may).find(words[:4]).experiment
        if session is None:
            raise HTTPError(404)
        # By its ID: it may be shared without its subject.
        words = ["experiments", session.id, *words[4:]]
    if words[:1] == ["experiments"] and words[2:3] == ["assessors"] and len(words) == 4:
        session = Finder(archive, may).find(words[:2]).experiment
        names = unquote(words[3])
        labelled = [item for item in archive.assessors(session.id if session else "") if item.label == names]
        words = [*words[:3], labelled[0].id] if labelled else words
    target = Finder(archive, may).find(words)
    if target.missing or target.new_subject or (target.rest and not target.files):
        raise HTTPError(404)
    return target
