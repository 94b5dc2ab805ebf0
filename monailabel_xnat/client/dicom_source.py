"""DICOM in a file, a folder or a zip: what its headers say, and how instances are packed for XNAT."""

from __future__ import annotations

import re
import secrets
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

import pydicom
from pydicom.errors import InvalidDicomError

from monailabel_xnat.errors import ImageError, NoImageError

_PREAMBLE = 128
_MAGIC = b"DICM"
# The attributes in which XNAT looks for "Subject:S Session:E", in this order.
_COMMENTS = ["PatientComments", "StudyComments", "AdditionalPatientHistory"]
_UIDS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
_FACTS = ["SpecificCharacterSet", "SOPClassUID", "Modality", "Rows", "NumberOfFrames", "PatientName", "PatientID"]
_TAGS = [*_COMMENTS, *_UIDS, *_FACTS]
_BLOCK = 1 << 20
# Modalities of objects that have pixels but are made from images.
_DERIVED = frozenset({"SEG", "RTDOSE"})
# Modalities of which a file is one slice, unless it has several frames.
_SLICED = frozenset({"CT", "MR", "PT", "NM"})
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class Instance:
    """One DICOM object, as its header describes it.

    Parameters
    ----------
    study, series, sop : str
        Its Study, Series and SOP Instance UID.
    is_image : bool
        Whether it is an image, and is not made from other images.
    is_slice : bool
        Whether it is one slice of a volume.
    subject, session : str
        The labels that XNAT makes from its header; empty if the header does not say.
    open : callable
        Returns an open stream of its bytes.
    """

    study: str
    series: str
    sop: str
    is_image: bool
    is_slice: bool
    subject: str
    session: str
    open: Callable[[], IO[bytes]]


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, with or without the preamble of DICOM PS3.10."""
    with path.open("rb") as stream:
        return _header(stream) is not None


@contextmanager
def dicom_instances(path: Path) -> Iterator[list[Instance]]:
    """Yield the DICOM instances of a file, of a folder with its sub-folders, or of a zip.

    Only their headers are read. Files that are not DICOM are left out, and so is a second file of the same object. The
    instances can be opened only inside of the ``with`` statement.

    Raises
    ------
    NoImageError
        If there is no DICOM image.
    ImageError
        If a zip is damaged, or an image lacks a UID that XNAT needs.
    """
    if path.is_dir():
        yield _instances([_opener(file) for file in sorted(path.rglob("*")) if file.is_file()], path)
    elif path.suffix.lower() != ".zip":
        yield _instances([_opener(path)], path)
    else:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise _damaged(path, error) from None
        with archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            try:
                found = _instances([partial(archive.open, member) for member in members], path)
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
                raise _damaged(path, error) from None
            yield found


def read_sop_uids(folder: Path) -> Iterator[str]:
    """Yield the SOP Instance UIDs of the DICOM files below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                header = _header(stream)
            if header is not None:
                yield _text(header, "SOPInstanceUID")


def main_series(instances: Iterable[Instance]) -> str:
    """Return the Series Instance UID of the series with the most images; there must be an image."""
    return Counter(instance.series for instance in instances if instance.is_image).most_common(1)[0][0]


def pack(instances: Iterable[Instance], target: Path) -> None:
    """Write a zip of instances.

    Raises
    ------
    ImageError
        If an instance cannot be read to its end.
    """
    with zipfile.ZipFile(target, "w") as archive:
        for number, instance in enumerate(instances):
            # XNAT keeps these names, and a later file replaces one with the same name. So each object gets a name of
            # its own, the same in every transfer, which does not contain a patient's name.
            name = instance.sop if _UID.fullmatch(instance.sop) else f"{number}-{secrets.token_hex(8)}"
            with instance.open() as stream, archive.open(f"{name}.dcm", "w", force_zip64=True) as member:
                try:
                    shutil.copyfileobj(stream, member, _BLOCK)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise ImageError(f"the zip holds a damaged file: {error}", hint="make the zip anew") from None


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def _instances(openers: Iterable[Callable[[], IO[bytes]]], path: Path) -> list[Instance]:
    found: dict[tuple[str, str], Instance] = {}
    nameless = 0
    for opener in openers:
        with opener() as stream:
            header = _header(stream)
        if header is None:
            continue
        instance = _instance(header, opener)
        if instance.study and instance.series and instance.sop:
            found.setdefault((instance.series, instance.sop), instance)
        elif instance.is_image:
            nameless += 1
    if nameless:
        raise ImageError(
            f"{path.name} holds {nameless} DICOM images without a study, series or SOP Instance UID",
            hint="XNAT files DICOM by these UIDs; write the images anew with them",
        )
    if not any(instance.is_image for instance in found.values()):
        raise NoImageError(f"{path.name} holds no DICOM image", hint="give DICOM files, or one image file")
    return list(found.values())


def _header(stream: IO[bytes]) -> pydicom.Dataset | None:
    """Return the part of a header that is needed here; None if the stream is not DICOM."""
    head = stream.read(_PREAMBLE + len(_MAGIC))
    stream.seek(0)
    forced = not head.endswith(_MAGIC)
    if forced and head[:1] not in (b"\x02", b"\x08"):  # without a preamble, a file starts with group 2 or 8
        return None
    try:
        header = pydicom.dcmread(cast(BinaryIO, stream), stop_before_pixels=True, force=forced, specific_tags=_TAGS)
    except (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError):
        return None
    return header if "SOPClassUID" in header else None


def _instance(header: pydicom.Dataset, opener: Callable[[], IO[bytes]]) -> Instance:
    study, series, sop, modality, patient_name, patient_id, frames = (
        _text(header, keyword) for keyword in (*_UIDS, "Modality", "PatientName", "PatientID", "NumberOfFrames")
    )
    comments = [_text(header, keyword) for keyword in _COMMENTS]
    return Instance(
        study=study,
        series=series,
        sop=sop,
        is_image="Rows" in header and modality not in _DERIVED,
        is_slice=modality in _SLICED and frames in ("", "1"),
        subject=_label(_assigned("Subject", comments) or patient_name or patient_id),
        session=_label(_assigned("Session", comments) or patient_id),
        open=opener,
    )


def _text(header: pydicom.Dataset, keyword: str) -> str:
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, AttributeError):  # an element that cannot be read counts as missing
        return ""
    return "" if value is None else str(value).strip()


def _assigned(name: str, comments: Iterable[str]) -> str:
    """Return the value of the first ``Name: value`` in the comments; "" if there is none."""
    for comment in comments:
        found = re.search(rf"(?:^|[\s,;]){name}:\s*([\w-]+)(?=[\s,;]|$)", comment, re.IGNORECASE)
        if found:
            return found.group(1)
    return ""


def _label(text: str) -> str:
    label = _NOT_IN_LABELS.sub("_", text.strip())
    return label if label.strip(".") else "_" * len(label)


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path.name} is no zip that can be read: {error}")
