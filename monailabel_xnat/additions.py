"""New images in XNAT, and scans out of it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from monailabel_xnat.client.dicom_import import DicomImport, is_dicom
from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.imagefile import ending
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.client.upload import Upload, upload
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import (
    AccessDeniedError,
    ImageError,
    InvalidIdError,
    NoImageError,
    NotInArchiveError,
    ReadOnlyError,
    ServerError,
    SettingsError,
)
from monailabel_xnat.ids import EXPECTED_FORM, ImageId
from monailabel_xnat.listing import Scan
from monailabel_xnat.selection import image_rank

logger = logging.getLogger(__name__)

_RESOURCES = {
    ".nii.gz": "NIFTI",
    ".nii": "NIFTI",
    ".nrrd": "NRRD",
    ".mha": "MHA",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_PICTURES = ("PNG", "JPEG", "TIFF")
# Types of sessions and scans that every XNAT knows, by modality.
_TYPES = {"MR": "mr", "CT": "ct", "PT": "pet"}
_OTHER_TYPE = "otherDicom"
# Below any value that an MR image has, and in the air around any CT (Hounsfield units).
_SURELY_CT = -500
# XNAT takes more in labels, but escapes, decodes or searches by some of it.
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_LABEL = 64


@dataclass(frozen=True)
class _Place:
    """Where a new image goes: names of one's own choice; scan "" for the next free number."""

    project: str
    subject: str
    session: str
    scan: str


class Additions:
    """Stores images in XNAT and deletes scans.

    Parameters
    ----------
    session : Session
        The connection.
    settings : Settings
        Which project is meant, and what is allowed.
    """

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings

    def add(self, image_id: str | None, path: Path) -> ImageId:
        """Store an image.

        An image file becomes a resource of a scan, in a subject and session that are made if need be. DICOM goes
        through XNAT's import service, which numbers the scan by its series.

        Parameters
        ----------
        image_id : str or None
            ``project/subject/experiment/scan`` in labels; any other text names subject and session, for DICOM
            it is ignored: its headers do. None: the file name does.
        path : Path
            A NIfTI or other image file; a DICOM file, folder or zip.

        Returns
        -------
        ImageId
            The canonical id. The same file again gets the same id again.

        Raises
        ------
        ReadOnlyError
            If the datastore is read-only.
        NoImageError, ImageError
            If there is no file, it is no image, or the scan named has another one. Nothing was written then.
        SettingsError
            If it is not clear which project is meant.
        AccessDeniedError, ServerError
            If XNAT refuses or fails.
        """
        if self._settings.read_only:
            raise ReadOnlyError("the datastore is read-only: no image was added", hint="unset read_only")
        _require_content(path)
        place = self._place(image_id, path)
        if path.is_dir() or path.suffix.lower() == ".zip" or (not ending(path.name) and is_dicom(path)):
            named = image_id is not None and image_id.count("/") == EXPECTED_FORM.count("/")
            importing = DicomImport(self._session, self._settings)
            return importing.run(path, place.project, (place.subject, place.session) if named else None)
        return self._add_file(place, path)

    def remove(self, scan: Scan) -> None:
        """Delete a scan in XNAT, with all its resources.

        Raises
        ------
        ReadOnlyError
            If the datastore is read-only or must not delete.
        AccessDeniedError
            If XNAT does not let the user delete.
        ServerError
            If XNAT fails.
        """
        if self._settings.read_only:
            raise ReadOnlyError("the datastore is read-only: no image was removed", hint="unset read_only")
        if not self._settings.allow_delete:
            raise ReadOnlyError(
                "removing an image would delete the scan in XNAT, which this datastore must not do",
                hint="set allow_delete to true if that is what you want",
            )
        try:
            self._session.request("DELETE", scan.path, query={"removeFiles": "true"})
        except NotInArchiveError:
            return
        except AccessDeniedError as error:
            raise AccessDeniedError(
                f"user {self._session.user!r} may not delete scans in project {scan.image_id.project!r}",
                hint="an owner of the project can; in XNAT members may write but not delete",
                url=error.url,
                status=error.status,
            ) from error
        logger.info("deleted a scan in XNAT")

    def _place(self, image_id: str | None, path: Path) -> _Place:
        named = image_id is not None and image_id.count("/") == EXPECTED_FORM.count("/")
        if image_id is not None and named:
            image = ImageId.parse(image_id)
            if self._settings.project and image.project not in self._settings.project:
                raise SettingsError(
                    f"project {image.project!r} is not among those configured: {', '.join(self._settings.project)}",
                    hint="add it to the setting project, or name one of these",
                )
            return _Place(image.project, image.subject, image.experiment, image.scan)
        if image_id and "/" in image_id:
            raise InvalidIdError(f"malformed image id {image_id!r}", hint=f"expected {EXPECTED_FORM}, or a plain name")
        if len(self._settings.project) != 1:
            configured = ", ".join(self._settings.project) or "none"
            raise SettingsError(
                f"it is not clear to which project to add the image; configured: {configured}",
                hint=f"set project to one ID, or give the id as {EXPECTED_FORM}",
            )
        name = _label(image_id or path.name[: -len(ending(path.name)) or None])
        return _Place(self._settings.project[0], name, name, "")

    def _add_file(self, place: _Place, path: Path) -> ImageId:
        end = ending(path.name)
        kind = _RESOURCES.get(end, "")
        if not kind:
            raise ImageError(
                f"{path.name} is no image that can be added alone",
                hint=f"give a DICOM file, folder or zip, or a file that ends in {', '.join(_RESOURCES)}",
            )
        wanted = self._settings.image_resource
        if not image_rank(wanted, kind):
            raise SettingsError(
                f"an image stored as {kind} would not be listed", hint=f"add {kind} to the setting image_resource"
            )
        resource = next((label for label in wanted if label.upper() == kind), kind)
        modality = _checked_modality(path, kind, self._settings)
        new = Upload(_label(path.name[: -len(end)]) + end, path, kind, "RAW")
        return self._stored(place, resource, new, _TYPES.get(modality, _OTHER_TYPE))

    def _stored(self, place: _Place, resource: str, new: Upload, kind: str) -> ImageId:
        subject = self._subject(place)
        session, kind = self._experiment(place, subject, kind)
        path = quoted("data", "projects", place.project, "subjects", subject, "experiments", session, "scans")
        scans = {row["ID"] for row in self._session.rows(path, {"columns": "ID"})}
        scan = place.scan or self._same_or_next_scan(path, scans, resource, new)
        scan_path = path + quoted(scan)
        target = scan_path + quoted("resources", resource)
        if scan in scans:
            self._require_no_other_image(target, new)
        else:
            scan_type = f"xnat:{kind}ScanData"
            fields = {"type": resource, "quality": "usable", "series_description": Path(new.name).name}
            query = {f"{scan_type}/{field}": value for field, value in fields.items()}
            self._session.request("PUT", scan_path, query={"xsiType": scan_type, **query})
        try:
            upload(self._session, target, new.name, new.source, format=new.format, content=new.content)
        except ServerError:
            if scan not in scans:
                self._take_back(scan_path)
            raise
        logger.info("added an image as a resource %s", resource)
        return ImageId(place.project, subject, session, scan)

    def _subject(self, place: _Place) -> str:
        """Give the ID of the subject, made if there is none of that label."""
        path = quoted("data", "projects", place.project, "subjects", place.subject)
        try:
            item = self._session.json(path)
        except NotInArchiveError:
            return self._made(path, {}, place)
        return str(item["items"][0]["data_fields"]["ID"])

    def _experiment(self, place: _Place, subject: str, kind: str) -> tuple[str, str]:
        """Give ID and type of the session, made if there is none of that label."""
        path = quoted("data", "projects", place.project, "subjects", subject, "experiments", place.session)
        try:
            item = self._session.json(path)["items"][0]
        except NotInArchiveError:
            session_type = f"xnat:{kind}SessionData"
            query = {"xsiType": session_type, "req_format": "qs", f"{session_type}/label": place.session}
            return self._made(path, query, place), kind
        found = re.fullmatch(r"xnat:(\w+)SessionData", item["meta"]["xsi:type"])
        return str(item["data_fields"]["ID"]), found.group(1) if found else kind

    def _made(self, path: str, query: dict[str, str], place: _Place) -> str:
        try:
            return self._session.request("PUT", path, query=query).text.strip()
        except AccessDeniedError as error:
            raise AccessDeniedError(
                f"user {self._session.user!r} may not add images to project {place.project!r}",
                hint="ask an owner of the project for member access",
                url=error.url,
                status=error.status,
            ) from error

    def _same_or_next_scan(self, path: str, scans: set[str], resource: str, new: Upload) -> str:
        """Give the scan that holds this very file, so that adding it again adds nothing; else the next number."""
        for scan in sorted(scans):
            for file in list_files(self._session, path + quoted(scan, "resources", resource)):
                if (file.size, file.md5) == tuple(new.fingerprint):
                    return scan
        numbers = [int(scan) for scan in scans if scan.isdigit()]
        return str(max(numbers, default=0) + 1)

    def _require_no_other_image(self, target: str, new: Upload) -> None:
        others = [file.path for file in list_files(self._session, target) if file.path != new.name]
        same = [file for file in list_files(self._session, target) if file.md5 == new.fingerprint.md5]
        if others and not same:
            raise ImageError(
                f"the scan already holds an image: {', '.join(sorted(others)[:3])}",
                hint="choose another scan id; images in XNAT are not overwritten",
            )

    def _take_back(self, scan_path: str) -> None:
        """Delete the scan that was made for an image that did not arrive, where XNAT lets us."""
        try:
            self._session.request("DELETE", scan_path, query={"removeFiles": "true"})
        except ServerError as error:
            logger.debug("an empty scan stays in XNAT: %s", type(error).__name__)


def _require_content(path: Path) -> None:
    if not path.exists():
        raise NoImageError(f"there is no file {path}")
    empty = not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
    if empty:
        raise NoImageError(f"{path} is empty")


def _checked_modality(path: Path, kind: str, settings: Settings) -> str:
    """Read an image file as a whole, and tell its modality: the only one that is listed, else CT by its values."""
    # Brings SimpleITK, which takes a while to load; a datastore to which nothing is added never needs it.
    from monailabel_xnat.convert.wholefile import read_whole_image

    values = read_whole_image(path)
    if kind in _PICTURES:
        return ""
    listed = [pattern.upper() for pattern in settings.modality if pattern.upper() in _TYPES]
    if len(listed) == 1:
        return listed[0]
    return "CT" if values.dtype.kind in "if" and values.min() < _SURELY_CT else "MR"


def _label(text: str) -> str:
    return _UNSAFE.sub("_", text).strip("_")[:_LONGEST_LABEL] or "image"
