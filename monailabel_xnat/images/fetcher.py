"""Fetching an image: files of a resource are downloaded, or read in the mounted archive, and made into one image."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.client.download import Receiver, download_files
from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import ImageError, NoImageError, TransferError
from monailabel_xnat.images.imagefile import (
    check_data_file,
    ending,
    holds_dicom,
    image_file,
    joined_ending,
    right_ending_if_wrong,
)
from monailabel_xnat.images.mounted import Mounted, MountedArchive, state_of

# Modules that need SimpleITK are imported where they are used: a datastore and a cached image work without it.

logger = logging.getLogger(__name__)

DICOM = "dicom"
"""The form of an image that is handed out as the folder of its DICOM files."""


@dataclass(frozen=True)
class Fetched:
    """An image that was fetched.

    Parameters
    ----------
    path : Path
        The file, or the folder of DICOM files; a link if it is in the mounted archive.
    origin : Mounted or None
        The folder in the mounted archive that its files were read from; None if they were downloaded.
    note : str
        What is doubtful about it; "" if nothing is.
    sources : bytes
        Which DICOM images its slices were made of, from `encode_sources`; empty for the DICOM files themselves.
    others : sequence of affines
        Affines (4, 4) as lists of numbers, voxel index to RAS, mm, that other programs may read from the original file.
    shear : sequence of float
        For a stack from a tilted gantry: how much further sideways (RAS, mm) each slice truly lies than the slice
        before; else empty.
    sha256 : str
        Hexadecimal SHA-256 of a file that was made here; empty for any other.
    """

    path: Path
    origin: Mounted | None = None
    note: str = ""
    sources: bytes = b""
    others: Sequence[Sequence[Sequence[float]]] = ()
    shear: Sequence[float] = ()
    sha256: str = ""


class Fetcher:
    """Fetches the files of images, and makes images from them.

    Parameters
    ----------
    session : Session
        The connection.
    settings : Settings
        The settings: where the archive is mounted, and what happens to a gantry tilt.
    """

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._gantry_tilt = settings.gantry_tilt
        self._archive = MountedArchive(session, settings.asset_path) if settings.asset_path else None

    def fetch(
        self, scan: Scan, resource: Resource, files: Sequence[RemoteFile], form: str, part: Path, folder: Path | None
    ) -> Fetched:
        """Fetch the files of a resource, and return the image that they make.

        Parameters
        ----------
        scan : Scan
            The scan.
        resource : Resource
            Its resource.
        files : sequence of RemoteFile
            The files that XNAT lists there.
        form : str
            The form for a DICOM series: ``nii`` or ``nii.gz`` to convert it, ``dicom`` for its folder. The form does
            not matter for an image that is stored as another kind of file.
        part : Path
            An empty folder to make the image in.
        folder : Path or None
            A folder on this machine that holds the DICOM files already, proven to be those that XNAT lists.

        Returns
        -------
        Fetched
            The image. Its path is in ``part``.

        Raises
        ------
        ImageError
            If the files do not make one image, or cannot be read.
        ServerError
            If XNAT fails, or sends other files than it lists (TransferError).
        """
        if not holds_dicom(resource.label, files):
            fetched = self._as_file(scan, resource, files, part)
        elif form == DICOM:
            fetched = self._as_folder(scan, resource, files, part)
        else:
            fetched = self._converted(scan, resource, files, part / f"image.{form}", folder)
        origin = fetched.origin
        if origin and state_of(origin.folder, files, as_a_whole=fetched.path.is_dir()) != origin.state:
            raise TransferError(
                f"files of scan {scan.image_id} changed in {origin.folder} while they were read", hint="try again"
            )
        return fetched

    def _converted(
        self, scan: Scan, resource: Resource, files: Sequence[RemoteFile], target: Path, folder: Path | None
    ) -> Fetched:
        """Convert a series to NIfTI, from files that are here already, or from files while they arrive."""
        from monailabel_xnat.convert.dicom.conversion import Conversion
        from monailabel_xnat.convert.dicom.volume import encode_sources, sources_of

        uid = scan.series_uid or None
        with Conversion(f"resource {resource.label} of scan {scan.image_id}", series_uid=uid) as conversion:
            origin = None
            if folder:
                _each_file(folder, files, conversion.add)
            else:
                _, origin = self._source(scan, resource, files, target.parent, conversion)
            try:
                volume = conversion.finish(target, series_uid=uid, one_scan=True, gantry_tilt=self._gantry_tilt)
            except NoImageError:
                if not uid:
                    raise
                # Files that were anonymised in the archive have other UIDs than XNAT lists. One series is still clear.
                volume = conversion.finish(target, one_scan=True, gantry_tilt=self._gantry_tilt)
            for warning in volume.warnings:
                logger.warning("an image is doubtful: %s", warning)
            notes = volume.warnings or (_note(conversion.series_uids, scan),)
            sources = sources_of(volume.sop_instance_uids, volume.frame_numbers, volume.shape[2])
            shear = () if volume.shear is None else tuple(volume.shear.tolist())
            return Fetched(
                volume.path, origin, "; ".join(notes), encode_sources(sources), shear=shear, sha256=volume.sha256
            )

    def _as_folder(self, scan: Scan, resource: Resource, files: Sequence[RemoteFile], part: Path) -> Fetched:
        from monailabel_xnat.convert.dicom.headers import read_series_uid

        folder, origin = self._source(scan, resource, files, part, as_a_whole=True)
        if origin:
            return Fetched(_linked(folder, part / "link"), origin)
        uids = [read_series_uid(folder / file.path) for file in files] if scan.series_uid else []
        return Fetched(folder, note=_note(filter(None, uids), scan))

    def _as_file(self, scan: Scan, resource: Resource, files: Sequence[RemoteFile], part: Path) -> Fetched:
        from monailabel_xnat.convert.dicom.volume import encode_sources
        from monailabel_xnat.convert.handout import hand_out, join_header_and_voxels, read_whole_image, unpaired

        image = image_file(files, f"resource {resource.label} of scan {scan.image_id}")
        joined = joined_ending(image.path)
        folder, origin = self._source(scan, resource, files, part, only=None if joined else image)
        header = path = folder / image.path
        check_data_file(path, sorted({file.path.rpartition("/")[2] for file in files} if joined else ()))
        if joined:
            join = unpaired if joined == ".nii" else join_header_and_voxels
            path = join(path, part / f"image{joined}")
        else:
            named = part / f"image{_true_ending(path, image)}"
            path = _linked(path, named) if origin else path.rename(named)
        read_whole_image(path)
        given = hand_out(path, part, header if joined else None)
        if given.note:
            logger.warning("an image is doubtful: %s", given.note)
        others = tuple(affine.tolist() for affine in given.others)
        return Fetched(given.path, origin, given.note, encode_sources({}), others)

    def _source(
        self,
        scan: Scan,
        resource: Resource,
        files: Sequence[RemoteFile],
        part: Path,
        receiver: Receiver | None = None,
        *,
        only: RemoteFile | None = None,
        as_a_whole: bool = False,
    ) -> tuple[Path, Mounted | None]:
        """Return a folder with the files: the mounted folder and its state, or a folder with downloads and None."""
        archive, wanted = self._archive, [only] if only else files
        mounted = archive.find(scan, resource.label, files, only=only, as_a_whole=as_a_whole) if archive else None
        if mounted:
            if receiver:
                _each_file(mounted.folder, wanted, receiver.add)
            return mounted.folder, mounted
        folder = part / "files"
        folder.mkdir(mode=0o700)
        download_files(self._session, resource_path(scan.path, resource.label), wanted, folder, receiver)
        return folder, None


def _linked(source: Path, link: Path) -> Path:
    """Make a link to a mounted file or folder, or a copy if the system cannot make links, and return its path."""
    try:
        link.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except (OSError, NotImplementedError):
        if source.is_dir():
            shutil.copytree(source, link)
        else:
            shutil.copyfile(source, link)
    return link


def _each_file(folder: Path, files: Sequence[RemoteFile], use: Callable[[Path], None]) -> None:
    from monailabel_xnat.convert.dicom.series import list_files as existing

    for path in existing([folder / file.path for file in files]):
        use(path)


def _true_ending(path: Path, image: RemoteFile) -> str:
    """Return the ending with which readers can open an image file, whatever its name in XNAT is.

    Raises
    ------
    ImageError
        If it is a DICOM file, which belongs into another resource.
    """
    wrong = right_ending_if_wrong(path, image.path)
    if wrong == ".dcm":
        raise ImageError(
            f"{image.path} is a DICOM file, whatever its name says", hint="store it in a resource called DICOM"
        )
    return wrong or ending(image.path)


def _note(series_uids: Iterable[str], scan: Scan) -> str:
    """Return a note on image files that belong to another series than XNAT lists; "" if there are none.

    XNAT itself sent them as files of this scan, so they are used. But either XNAT's list or their headers are wrong.
    """
    found = Counter(series_uids)
    others = {uid: count for uid, count in found.items() if uid != scan.series_uid}
    if not scan.series_uid or not others:
        return ""
    logger.warning("the files of an image are of another series than XNAT lists for it; status() tells which")
    count, total = sum(others.values()), sum(found.values())
    return f"{count} of {total} files are of the series {', '.join(sorted(others))}; XNAT lists {scan.series_uid}"
