"""Adding images to XNAT as scans, and deleting scans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.catalog.image_index import ambiguous
from monailabel_xnat.catalog.scan import Resource, Scan, ScanMark
from monailabel_xnat.catalog.selection import Selection, image_rank
from monailabel_xnat.client.dicom_import import DicomImport
from monailabel_xnat.client.dicom_source import Instance, dicom_instances, is_dicom, main_series
from monailabel_xnat.client.items import append_note, delete, exists
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, denied
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import (
    AccessDeniedError,
    ImageConflictError,
    ImageError,
    InvalidIdError,
    NoImageError,
    NotInArchiveError,
    ReadOnlyError,
    SettingsError,
    TransferError,
    UnknownImageError,
)
from monailabel_xnat.ids import EXPECTED_FORM, ImageId
from monailabel_xnat.images.imagefile import ending, right_ending_if_wrong
from monailabel_xnat.images.new_scans import NewFile, NewScans, Place, label_of

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
# Hounsfield units. The air around any CT is below this value, and no value of an MR image is.
_SURELY_CT = -500
# XNAT stores at most 255 characters, and some characters take several because XNAT escapes them.
_LONGEST_NAME = 200


class ScanWriter:
    """Stores images in XNAT and deletes scans.

    Parameters
    ----------
    session : Session
        The connection; its settings say which project is meant, and what is allowed.
    catalog : Catalog
        Knows the images; it is renewed after an addition.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._session = session
        self._settings = session.settings
        self._catalog = catalog
        self._new_scans = NewScans(session, catalog)

    def add(self, image_id: str | None, path: Path) -> Scan:
        """Store an image in XNAT, unless it is there already, and return its scan.

        An image file becomes a resource of a scan, in a subject and a session that are made if need be. DICOM is sent
        to XNAT's import service, which numbers the scan by its series; each study gets a session of its own.

        Parameters
        ----------
        image_id : str or None
            ``project/subject/experiment/scan`` in labels, or any other text: a name under which the image can be found
            from now on. The name is also the label of subject and session, except for DICOM, whose headers name these.
            None stands for the name of the file.
        path : Path
            A NIfTI or other image file; a DICOM file, folder or zip.

        Returns
        -------
        Scan
            The new image. Adding the same image again returns the same scan. DICOM is recognised by its SOP Instance
            UIDs, other files by their content.

        Raises
        ------
        ReadOnlyError
            If the datastore is read-only.
        NoImageError, ImageError
            If there is no file, or it is not an image. Nothing was written then.
        ImageConflictError
            If another image has the name, or is in the scan that was named.
        AmbiguousNameError
            If several images have the name.
        SettingsError
            If it is not clear which project is meant, or the image would not be listed.
        AccessDeniedError, ServerError
            If XNAT refuses or fails.
        """
        if self._settings.read_only:
            raise ReadOnlyError("the datastore is read-only: no image was added", hint="unset read_only")
        _require_content(path)
        place = self._place(image_id, path)
        name = place.name
        if path.is_dir() or path.suffix.lower() == ".zip" or (not ending(path.name) and is_dicom(path)):
            name = place.name if place.is_given else ""
            image = self._add_dicom(place, name, path)
        else:
            image = self._new_scans.store(place, self._checked_file(place, path))
        self._catalog.renew()
        if name and len(named := self._catalog.named(name)) > 1:
            raise ambiguous(name, named)
        try:
            return self._catalog.scan(image)
        except UnknownImageError as error:
            raise UnknownImageError(
                f"the image is in XNAT as {image}, but is not listed",
                hint="the filters in the settings leave it out, or XNAT has not counted its files yet: refresh()",
            ) from error

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
            delete(self._session, scan.path)
            if exists(self._session, scan.path):
                raise TransferError(
                    f"XNAT said that it deleted the scan {scan.image_id}, but still has it",
                    hint="try again; if it stays, see the log of the XNAT server",
                    url=scan.path,
                )
        except NotInArchiveError:
            return
        except AccessDeniedError as error:
            raise denied(
                self._session, scan.path, "may not delete scans in", project=scan.home, status=error.status
            ) from error
        logger.info("deleted a scan in XNAT")

    def _place(self, image_id: str | None, path: Path) -> Place:
        if image_id and image_id.count("/") == EXPECTED_FORM.count("/"):
            image = ImageId.parse(image_id)
            if self._settings.project and image.project not in self._settings.project:
                raise SettingsError(
                    f"project {image.project!r} is not among those configured: {', '.join(self._settings.project)}",
                    hint="add it to the setting project, or name one of these",
                )
            return Place(image.project, image.subject, image.experiment, image.scan)
        if image_id and "/" in image_id:
            raise InvalidIdError(f"malformed image id {image_id!r}", hint=f"expected {EXPECTED_FORM}, or a plain name")
        if len(self._settings.project) != 1:
            configured = ", ".join(self._settings.project) or "none"
            raise SettingsError(
                f"it is not clear to which project to add the image; configured: {configured}",
                hint=f"set project to one ID, or give the id as {EXPECTED_FORM}",
            )
        name = image_id or path.name[: -len(ending(path.name)) or None]
        if len(name) > _LONGEST_NAME:
            raise InvalidIdError(
                f"the name of the image has {len(name)} characters", hint=f"rename it: {_LONGEST_NAME} at most"
            )
        label = label_of(name)
        return Place(self._settings.project[0], label, label, "", name, is_given=bool(image_id))

    def _checked_file(self, place: Place, path: Path) -> NewFile:
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
        modality = _checked_modality(path, kind, self._settings)
        resource = next((label for label in wanted if label.upper() == kind), kind)
        # XNAT keeps the first of two files with the same name, so two machines cannot put two images into one scan.
        stem = label_of(place.name or f"scan_{place.scan}")
        new = NewFile(
            Upload(stem + end, path, kind, "RAW"),
            resource,
            _TYPES.get(modality, _OTHER_TYPE),
            place.name or label_of(path.name[: -len(end)]) + end,
        )
        self._require_listed(place, new, modality)
        return new

    def _require_listed(self, place: Place, new: NewFile, modality: str) -> None:
        """Refuse an image that the filters in the settings would hide as soon as it is stored."""
        expected = Scan(
            image_id=ImageId(place.project, place.subject, place.session, place.scan or "1"),
            owner=place.project,
            subject_label=place.subject,
            session_label=place.session,
            session_type="",
            session_date="",
            type=new.resource,
            series_description=new.description,
            quality="usable",
            modality=modality,
            series_uid="",
            study_uid="",
            frames=None,
            resources=(Resource(new.resource, 1, None),),
        )
        choice = Selection(self._settings).of({str(expected.image_id): expected}, {})
        if not choice.images:
            raise SettingsError(
                f"the image would not be listed: it is stored as {new.resource} with the series description "
                f"{new.description!r}, and {choice.problem}",
                hint="change that setting, or the name of the image",
            )

    def _add_dicom(self, place: Place, name: str, path: Path) -> ImageId:
        explicit = None if place.name else (place.subject, place.session, place.scan)
        with dicom_instances(path) as instances:
            series = main_series(instances)
            for known in self._catalog.named(name) if name else ():
                if known.series_uid != series:
                    raise ImageConflictError(
                        f"the name {name!r} is taken by another image, {known.image_id}",
                        hint="rename it: add this image under another name",
                    )
            imported = DicomImport(self._session, place.project).run(instances, series, explicit)
            if imported.is_new and name and _is_volume(instances, series):
                # The series description comes from the scanner, so the name is stored in the note of the scan.
                append_note(self._session, imported.image, str(ScanMark(name=name)))
        return imported.image


def _require_content(path: Path) -> None:
    if not path.exists():
        raise NoImageError(f"there is no file {path}")
    empty = not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
    if empty:
        raise NoImageError(f"{path} is empty")


def _checked_modality(path: Path, kind: str, settings: Settings) -> str:
    """Read a whole image file, and return its modality: the only one in the settings, or else CT or MR by its values.

    It is "" for a picture (PNG, JPEG, TIFF).
    """
    # This imports SimpleITK, which takes a while; a datastore to which nothing is added never needs it.
    from monailabel_xnat.convert.handout import read_whole_image

    wrong = right_ending_if_wrong(path, path.name)
    if wrong:
        raise ImageError(f"{path.name} is not what its name says", hint=f"by its content, it should end in {wrong}")
    values = read_whole_image(path)
    if kind in _PICTURES:
        return ""
    listed = [pattern.upper() for pattern in settings.modality if pattern.upper() in _TYPES]
    if len(listed) == 1:
        return listed[0]
    return "CT" if values.dtype.kind in "if" and values.min() < _SURELY_CT else "MR"


def _is_volume(instances: Sequence[Instance], series: str) -> bool:
    """Return whether a series is a volume, and not a single slice whose other slices may come under other names."""
    images = [instance for instance in instances if instance.series == series]
    return len(images) > 1 or not images[0].is_slice
