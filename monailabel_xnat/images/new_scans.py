"""Adding an image file: its scan is found or made, the file is uploaded, and the scan must hold no other image then."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.catalog.image_index import ambiguous
from monailabel_xnat.catalog.scan import Scan, ScanMark, read_mark
from monailabel_xnat.catalog.selection import image_rank
from monailabel_xnat.client.answers import whole_number
from monailabel_xnat.client.files import RemoteFile, list_files_by_resource
from monailabel_xnat.client.items import (
    delete,
    exists,
    list_files_of_scans,
    list_scans,
    put,
    read_session,
    read_subject,
    resource_path,
    scan_path,
    session_path,
    subject_path,
)
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, adding, denied, holds, remove_file, upload
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import AccessDeniedError, ImageConflictError, NotInArchiveError, ServerError, name_some
from monailabel_xnat.ids import ImageId
from monailabel_xnat.images.imagefile import ending, holds_dicom

logger = logging.getLogger(__name__)

Failure = TypeVar("Failure", bound=ServerError)

# XNAT allows more characters in labels, but treats some of them in a special way.
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_LABEL = 64
# Types of sessions whose scans have types of other names.
_KINDS_WITHOUT_SCANS = frozenset({"petmr"})


@dataclass(frozen=True)
class Place:
    """The place of a new image in XNAT.

    Parameters
    ----------
    project, subject, session, scan : str
        Labels or IDs that the caller chose; ``scan`` is "" for the next free number.
    name : str
        The name under which the image can be found later; "" if an id was given.
    is_given : bool
        Whether the caller chose the name. Otherwise it is the name of the file.
    """

    project: str
    subject: str
    session: str
    scan: str
    name: str = ""
    is_given: bool = True


@dataclass(frozen=True)
class NewFile:
    """A checked image file.

    Parameters
    ----------
    upload : Upload
        The file as it will be stored.
    resource : str
        Label of the resource for it.
    kind : str
        XNAT's word for the type of a session and a scan made for it, such as ``mr``.
    description : str
        The series description of a scan made for it.
    """

    upload: Upload
    resource: str
    kind: str
    description: str


@dataclass(frozen=True)
class _Home:
    """A session: IDs, XNAT's word for its type, and its scans."""

    subject: str
    session: str
    kind: str
    scans: dict[str, str]
    """For each scan id, the name under which an image was added to the scan, or ""."""
    is_of_others: bool = False
    """Whether it belongs to another subject than the one that is meant."""
    is_shared: bool = False
    """Whether another project owns it; see :func:`~monailabel_xnat.client.items.scan_path`."""


@dataclass(frozen=True)
class _Claim:
    """The scan for an image, and whether it was made for it."""

    image: ImageId
    path: str
    is_new: bool = False


class NewScans:
    """Stores image files in scans of XNAT.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Finds images by their names.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._session = session
        self._settings = session.settings
        self._catalog = catalog

    def store(self, place: Place, new: NewFile) -> ImageId:
        """Store a file in the scan of its place, unless it is there already.

        Raises
        ------
        ImageConflictError
            If another image is there, or another machine added one at the same moment.
        AmbiguousNameError
            If several images have the name.
        AccessDeniedError, ServerError
            If XNAT refuses or fails. The error names subjects, sessions and scans that were made and stay empty.
        """
        made: list[str] = []
        with adding(self._settings, f"project {place.project}"):
            try:
                claim = self._claim(place, new, made)
            except ServerError as error:
                if not made:
                    raise
                raise _leaving(error, made) from error
        with adding(self._settings, f"scan {claim.image.experiment}/{claim.image.scan}"):
            return self._fill(claim, place, new)

    # Which scan

    def _claim(self, place: Place, new: NewFile, made: list[str]) -> _Claim:
        known = self._known(place, new)
        if known is not None:
            return _Claim(known.image_id, known.path)
        if place.scan:
            home = self._home(place, place.session)
            if home is not None and place.scan in home.scans:
                return _claimed(place, home, place.scan)
            return self._made(place, place.session, home, new, made)
        label, own = place.session, _own_label(place)
        home = self._home(place, label)
        if home is not None and (home.is_of_others or set(home.scans.values()) - {"", place.name}):
            # Two names that give the same label must not put two patients into one session.
            label = own
            home = self._home(place, label)
        if home is not None:
            scan = self._scan_of_name(place, home) or self._scan_of_content(home, new)
            if scan:
                return _claimed(place, home, scan)
        return self._made(place, label, home, new, made)

    def _known(self, place: Place, new: NewFile) -> Scan | None:
        """Return the image that was added under this name or, if the caller chose no name, from the same file."""
        if not place.name:
            return None
        named = self._catalog.named(place.name)
        if not named and not place.is_given:
            md5 = new.upload.fingerprint.md5
            marks = ((scan, read_mark(scan.mark)) for scan in self._catalog.scans() if scan.mark)
            named = [
                scan for scan, mark in marks if mark and mark.md5 == md5 and scan.image_id.project == place.project
            ]
            named = [scan for scan in named if self._holds_file(scan.path, new)][:1]
        if len(named) > 1:
            raise ambiguous(place.name, named)
        # Somebody may have deleted it since it was listed.
        return named[0] if named and exists(self._session, named[0].path) else None

    def _scan_of_name(self, place: Place, home: _Home) -> str:
        ours = [scan for scan, name in home.scans.items() if name == place.name]
        if len(ours) > 1:
            raise ambiguous(place.name, [ImageId(place.project, home.subject, home.session, scan) for scan in ours])
        return ours[0] if ours else ""

    def _scan_of_content(self, home: _Home, new: NewFile) -> str:
        """Return a scan that holds the file already, among the scans without a name; "" if there is none."""
        sizes = {str(new.upload.fingerprint.size), ""}
        digests = {new.upload.fingerprint.md5, ""}
        for scan, path, row in list_files_of_scans(self._session, home.session) if home.scans else ():
            may_be_it = row.get("Size", "") in sizes and row.get("digest", "").lower() in digests
            if may_be_it and home.scans.get(scan) == "" and self._holds_file(path, new):
                return scan
        return ""

    def _holds_file(self, path: str, new: NewFile) -> bool:
        try:
            files = self._images_in(path)
        except NotInArchiveError:
            return False
        return any(holds(self._session, file, new.upload) for file in files)

    def _home(self, place: Place, label: str) -> _Home | None:
        """Return the session with a label; None if there is none.

        Raises
        ------
        ImageConflictError
            If an id was given, and its session belongs to another subject.
        """
        try:
            item = read_session(self._session, place.project, label)["items"][0]
        except NotInArchiveError:
            return None
        fields = item["data_fields"]
        is_of_others = not self._is_of(fields, place.project, label if place.name else place.subject)
        if is_of_others and not place.name:
            raise ImageConflictError(
                f"the session {label} of project {place.project!r} belongs to another subject than {place.subject}",
                hint="rename it: choose another id for the image",
            )
        rows = list_scans(self._session, fields["ID"], "note", "series_description")
        names = {row["ID"]: _name_of(row) for row in rows}
        found = re.fullmatch(r"xnat:(\w+)SessionData", item["meta"]["xsi:type"])
        kind = found.group(1) if found and found.group(1) not in _KINDS_WITHOUT_SCANS else ""
        is_shared = fields.get("project") != place.project
        return _Home(fields["subject_ID"], fields["ID"], kind, names, is_of_others, is_shared)

    def _is_of(self, session: Mapping[str, str], project: str, subject: str) -> bool:
        """Return whether a session belongs to a subject, given by its ID or by a label."""
        owner = session["subject_ID"]
        if owner in (subject, self._subject(project, subject)):
            return True
        if session.get("project") == project:
            return False
        try:  # a session may be shared without its subject; then only the label in the owner's project is known
            item = read_subject(self._session, owner)
        except (NotInArchiveError, AccessDeniedError):
            return False
        return bool(item["items"][0]["data_fields"].get("label") == subject)

    def _subject(self, project: str, label: str) -> str:
        """Return the ID of the subject with a label; "" if there is none."""
        try:
            item = read_subject(self._session, label, project)
        except NotInArchiveError:
            return ""
        return str(item["items"][0]["data_fields"]["ID"])

    # Making what is missing

    def _made(self, place: Place, label: str, home: _Home | None, new: NewFile, made: list[str]) -> _Claim:
        """Make the scan, and the subject and the session if they are missing."""
        if home is None:
            subject_label = label if place.name else place.subject
            subject = self._subject(place.project, subject_label)
            path = subject_path(place.project, subject or subject_label)
            if not subject:
                subject = self._put(path, {}, made, f"subject {subject_label}")
                path = subject_path(place.project, subject)
            session_type = f"xnat:{new.kind}SessionData"
            query = {"xsiType": session_type, "req_format": "qs", f"{session_type}/label": label}
            session = self._put(session_path(path, label), query, made, f"session {label}")
            home = _Home(subject, session, new.kind, {})
        numbers = filter(None, map(whole_number, home.scans))
        scan = place.scan or str(max(numbers, default=0) + 1)
        image = ImageId(place.project, home.subject, home.session, scan)
        scan_type = f"xnat:{home.kind or new.kind}ScanData"
        mark = ScanMark(is_named=bool(place.name), md5=new.upload.fingerprint.md5)
        fields = {
            "type": new.resource,
            "quality": "usable",
            "series_description": new.description,
            "note": str(mark),
        }
        query = {f"{scan_type}/{name}": value for name, value in fields.items()}
        path = scan_path(image, is_shared=home.is_shared)
        self._put(path, {"xsiType": scan_type, **query}, made, f"scan {scan}")
        return _Claim(image, path, is_new=True)

    def _put(self, path: str, query: dict[str, str], made: list[str], what: str) -> str:
        try:
            answer = put(self._session, path, query)
        except AccessDeniedError as error:
            raise denied(self._session, path, "may not add images to", status=error.status) from error
        made.append(what)
        return answer

    # Filling it

    def _fill(self, claim: _Claim, place: Place, new: NewFile) -> ImageId:
        """Upload the file, unless the scan holds it already, and check that the scan holds no other image."""
        before = self._images_in(claim.path)
        others = [file for file in before if not holds(self._session, file, new.upload)]
        if others:
            raise self._conflict(claim, place, others)
        if before:
            return claim.image
        target = resource_path(claim.path, new.resource)
        item = new.upload
        try:
            upload(self._session, target, item.name, item.source, format=item.format, content=item.content)
        except ServerError as error:
            with suppress(ServerError):
                self._require_no_other_image(claim, new)
            left = self._left(claim)
            if not left:
                raise
            raise _leaving(error, left) from error
        self._require_no_other_image(claim, new)
        logger.info("added an image as a resource %s", new.resource)
        return claim.image

    def _images_in(self, path: str) -> list[RemoteFile]:
        """Return the files of a scan that this datastore takes for images."""
        found = []
        for label, files in list_files_by_resource(self._session, path).items():
            if image_rank(self._settings.image_resource, label):
                found += files if holds_dicom(label, files) else [file for file in files if ending(file.path)]
        return found

    def _conflict(self, claim: _Claim, place: Place, others: list[RemoteFile]) -> ImageConflictError:
        names = name_some(sorted(file.path for file in others))
        if place.name:
            return ImageConflictError(
                f"the name {place.name!r} is taken by another image, {claim.image} ({names})",
                hint="rename it: add this image under another name; images in XNAT are not overwritten",
            )
        return ImageConflictError(
            f"the scan already holds an image: {names} in {claim.image}",
            hint="rename it: choose another scan id; images in XNAT are not overwritten",
        )

    def _require_no_other_image(self, claim: _Claim, new: NewFile) -> None:
        """Check that no other machine stored an image in the same scan in the meantime: XNAT cannot reserve scans.

        Raises
        ------
        ImageConflictError
            If there is another image. Ours is then deleted again, if the setting ``allow_delete`` permits it.
        """
        files = self._images_in(claim.path)
        ours = [file for file in files if holds(self._session, file, new.upload)]
        others = [file for file in files if file not in ours]
        if not others:
            return
        names = name_some(sorted(file.path for file in others))
        message = f"another machine added {names} to {claim.image} at the same moment"
        if not ours:
            raise ImageConflictError(f"{message}, and this image was not stored", hint="rename it, or try again")
        if not self._settings.allow_delete:
            raise ImageConflictError(
                f"{message}, beside {new.upload.name}; the scan cannot be read while it holds both",
                hint="have an owner of the project delete one of the files, and add that image under another name",
            )
        for file in ours:
            remove_file(self._session, file, files)
        raise ImageConflictError(f"{message}, and this image was taken back", hint="rename it, or try again")

    def _left(self, claim: _Claim) -> list[str]:
        """Delete the new scan of an image that did not arrive, if XNAT permits it; return what stays empty."""
        image = claim.image
        try:
            if claim.is_new and not any(list_files_by_resource(self._session, claim.path).values()):
                delete(self._session, claim.path)
                is_empty = not list_scans(self._session, image.experiment)
                return [f"session {image.project}/{image.subject}/{image.experiment}"] if is_empty else []
        except ServerError as error:
            logger.debug("an empty scan stays in XNAT: %s", type(error).__name__)
        return [f"scan {image}"]


def label_of(text: str) -> str:
    """Return a text as a label that XNAT accepts."""
    return _UNSAFE.sub("_", text).strip("_")[:_LONGEST_LABEL] or "image"


def _claimed(place: Place, home: _Home, scan: str) -> _Claim:
    image = ImageId(place.project, home.subject, home.session, scan)
    return _Claim(image, scan_path(image, is_shared=home.is_shared))


def _own_label(place: Place) -> str:
    """Return the label for a name if another name already has the usual label."""
    mark = text_digest(place.name)[:8]
    return f"{place.session[: _LONGEST_LABEL - len(mark) - 1]}_{mark}"


def _name_of(row: dict[str, str]) -> str:
    mark = read_mark(row.get("note", ""))
    return mark.alias(row.get("series_description", "")) if mark else ""


def _leaving(error: Failure, made: list[str]) -> Failure:
    """Return an error that also names what stays empty in XNAT."""
    return type(error)(
        f"{error.message}; empty in XNAT stay: {', '.join(made)}",
        hint=f"{error.hint}; the next attempt uses what is empty" if error.hint else "the next attempt uses it",
        url=error.url,
        status=error.status,
    )
