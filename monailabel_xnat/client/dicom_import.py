"""DICOM into XNAT through its import service, which files it by its headers."""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

import pydicom
from pydicom.errors import InvalidDicomError

from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import ImageError, NoImageError, ServerError
from monailabel_xnat.ids import ImageId

logger = logging.getLogger(__name__)

_PREAMBLE = 128
_MAGIC = b"DICM"
_TAGS = ["SOPClassUID", "SeriesInstanceUID", "Rows"]
_ARCHIVED = "/data/archive/"


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM, with or without the preamble of DICOM PS3.10."""
    with path.open("rb") as stream:
        return _series_of(stream) is not None


class DicomImport:
    """Sends DICOM to XNAT's import service.

    Parameters
    ----------
    session : Session
        The connection.
    settings : Settings
        Where temporary files may lie.
    """

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings

    def run(self, path: Path, project: str, labels: tuple[str, str] | None) -> ImageId:
        """Import a file, a folder with its sub-folders, or a zip.

        Parameters
        ----------
        path : Path
            What to import; files that are not DICOM are left out, but for those in a zip.
        project : str
            The project's ID.
        labels : tuple of str or None
            Labels for subject and session; None: XNAT makes them from the headers.

        Returns
        -------
        ImageId
            The scan of the series with the most images.

        Raises
        ------
        NoImageError
            If there is no DICOM image.
        ImageError
            If a zip is damaged.
        ServerError
            If XNAT refuses, fails, or leaves the images in its prearchive.
        """
        if path.suffix.lower() == ".zip" and not path.is_dir():
            series = _main_series(_zipped_series(path), path)
            return self._send(path, series, project, labels)
        with tempfile.NamedTemporaryFile(prefix="dicom-", suffix=".zip") as packed:
            series = _main_series(_pack(path, Path(packed.name)), path)
            return self._send(Path(packed.name), series, project, labels)

    def _send(self, packed: Path, series: str, project: str, labels: tuple[str, str] | None) -> ImageId:
        destination = f"/archive/projects/{project}"
        if labels:
            destination += "/subjects/{}/experiments/{}".format(*labels)
        query = {"import-handler": "DICOM-zip", "dest": destination, "overwrite": "append", "Ignore-Unparsable": "true"}
        response = self._session.request(
            "POST",
            "/data/services/import",
            query=query,
            body=lambda: packed.open("rb"),
            headers={"Content-Type": "application/zip"},
        )
        answers = response.text.split()
        for answer in answers:
            if _ARCHIVED in answer:
                image = self._find(answer[answer.index(_ARCHIVED) :], series, project)
                if image:
                    logger.info("imported a DICOM series")
                    return image
        raise ServerError(
            f"XNAT took the DICOM files but did not archive them: it answered {' '.join(answers) or 'nothing'}",
            hint="look into the prearchive of the project, and archive them there",
        )

    def _find(self, path: str, series: str, project: str) -> ImageId | None:
        """Find the scan of a series in the session that XNAT says it archived."""
        session = path.rstrip("/").rpartition("/")[2]
        item = self._session.json(quoted("data", "projects", project, "experiments", session))
        fields = item["items"][0]["data_fields"]
        scans = quoted("data", "projects", project, "subjects", fields["subject_ID"], "experiments", fields["ID"])
        for row in self._session.rows(f"{scans}/scans", {"columns": "ID,UID"}):
            if row.get("UID") == series:
                return ImageId(project, fields["subject_ID"], fields["ID"], row["ID"])
        return None


def _pack(source: Path, target: Path) -> Iterator[str]:
    """Zip the DICOM files, and give the series of each image."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    with zipfile.ZipFile(target, "w") as archive:
        for number, file in enumerate(files):
            with file.open("rb") as stream:
                series = _series_of(stream)
            if series is not None:
                # XNAT names files itself; numbers keep patients' names out of the transfer.
                archive.write(file, f"{number}.dcm")
                yield series


def _zipped_series(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as stream:
                        yield _series_of(stream) or ""
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ImageError(f"{path.name} is no zip that can be read: {error}") from None


def _main_series(found: Iterator[str], path: Path) -> str:
    counts = Counter(series for series in found if series)
    if not counts:
        raise NoImageError(f"{path.name} holds no DICOM image", hint="give DICOM files, or one image file")
    return counts.most_common(1)[0][0]


def _series_of(stream: IO[bytes]) -> str | None:
    """Give the series of a DICOM image, "" for another DICOM object, None for what is no DICOM."""
    head = stream.read(_PREAMBLE + len(_MAGIC))
    stream.seek(0)
    forced = not head.endswith(_MAGIC)
    if forced and head[:1] not in (b"\x02", b"\x08"):  # group 2 or 8 comes first, where there is no preamble
        return None
    try:
        header = pydicom.dcmread(cast(BinaryIO, stream), stop_before_pixels=True, force=forced, specific_tags=_TAGS)
    except (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError):
        return None
    if "SOPClassUID" not in header:
        return None
    return str(header.get("SeriesInstanceUID", "")) if "Rows" in header else ""
