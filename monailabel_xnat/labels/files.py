"""Label files on this machine: each is downloaded once, verified, and used only if it fits its image as it is now.

The image may have been replaced in XNAT since its label was made.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_xnat.catalog import Scan
from monailabel_xnat.client.files import fetch
from monailabel_xnat.client.session import Session
from monailabel_xnat.convert import Grid, read_label, write_label
from monailabel_xnat.convert.labelmap import differences
from monailabel_xnat.disk import file_digest, must_work, private_folder, text_digest, whole
from monailabel_xnat.errors import (
    CacheError,
    ImageError,
    LabelFileError,
    LabelGeometryError,
    ServerError,
    TransferError,
)
from monailabel_xnat.ids import ImageId, safe_name
from monailabel_xnat.images import Images
from monailabel_xnat.labels.incoming import read_incoming
from monailabel_xnat.labels.version import LABEL_MAP, LabelVersion, renamed

logger = logging.getLogger(__name__)


class LabelFiles:
    """A folder with a file for each image, tag and version. A version never changes.

    Parameters
    ----------
    session : Session
        The connection.
    folder : Path
        The folder; it is made when the first label comes.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._folder = folder

    def path(self, image: ImageId, tag: str, version: LabelVersion) -> Path:
        """Return the file of a version, which is downloaded if it is not in the folder.

        Raises
        ------
        TransferError
            If XNAT sends other content than was saved.
        ServerError
            If XNAT fails.
        CacheError
            If the file cannot be written to the disk.
        """
        path = self._path(image, tag, version)
        if not _is_whole(path, version):
            with self._arriving(path) as temporary:
                self._fetch(version, temporary)
        return path

    def keep(self, image: ImageId, tag: str, version: LabelVersion, source: Path) -> Path:
        """Put the file of a version from the outbox into the folder, as a link if the disk allows it, and return it.

        Raises
        ------
        CacheError
            If the content is not what was saved.
        FileNotFoundError
            If the file has left the outbox.
        """
        path = self._path(image, tag, version)
        if not _is_whole(path, version):
            # An open file can be copied even after another process has removed it from the outbox.
            with source.open("rb") as stream, self._arriving(path) as temporary:
                try:
                    os.link(source, temporary)
                except OSError:
                    with temporary.open("xb") as copy:
                        shutil.copyfileobj(stream, copy)
                if renamed(version.name, file_digest(temporary)) != version.name:
                    raise CacheError(
                        f"the label in {source.parent} changed while it waited",
                        hint="look at it there, and save it again if it is what it should be",
                    )
        return path

    def derived(self, path: Path, mark: str, write: Callable[[Path], None]) -> Path:
        """Return a file that is made from a label map; it is made if it does not exist.

        Parameters
        ----------
        path : Path
            The original label map, in this folder.
        mark : str
            A text that says what was changed; it becomes a part of the file name.
        write : callable
            Writes the new file to a path, in one step.
        """
        target = path.with_name(f"{path.name[: -len(LABEL_MAP)]}_{mark}{LABEL_MAP}")
        if not target.exists():
            write(target)
        return target

    def discard(self, image: ImageId, tag: str, version: LabelVersion) -> None:
        """Remove the file of a version that was deleted."""
        self._path(image, tag, version).unlink(missing_ok=True)

    def _path(self, image: ImageId, tag: str, version: LabelVersion) -> Path:
        # The name has no dot before the extension, because MONAI Label takes all text after the first dot as extension.
        text = f"{image.subject}_{image.experiment}_{image.scan}_{tag}_{version.name}"
        stem = safe_name(text, f"{image} {tag} {version.name}")
        return self._folder / (stem + version.extension)

    def _fetch(self, version: LabelVersion, target: Path) -> None:
        assert version.file is not None  # noqa: S101 - only what waits in the outbox has none
        fetched = fetch(self._session, version.file, target)
        found = fetched.sha256
        # Names of our files contain the digest. Files of other programs are compared with the size and the MD5 that
        # XNAT lists, if it lists them.
        is_listed = version.file.size in (None, fetched.size) and version.file.md5 in ("", fetched.md5)
        if found.startswith(version.digest) if version.saved_at is not None else is_listed:
            return
        raise TransferError(
            f"XNAT sent other data than was saved as {version.file.path}: {fetched.size} bytes of "
            f"{version.file.size}, SHA-256 {found[:12]}",
            hint="try again; if it stays, restore an earlier version of the label",
            url=version.file.uri,
        )

    @contextmanager
    def _arriving(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path. At the end the file there gets its final name in one step."""
        hint = "make room on the disk or set cache_path to another one"
        with must_work(f"keep the label in {self._folder}", hint):
            private_folder(self._folder)
            with whole(path) as temporary:
                yield temporary


def _is_whole(path: Path, version: LabelVersion) -> bool:
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return version.file is None or version.file.size in (None, size)


def grid_now(images: Images, scan: Scan) -> Grid | None:
    """Return the grid of an image as it is now; None if the image is not available, so nothing can be compared."""
    try:
        return images.grid(scan)
    except (ServerError, ImageError) as error:
        logger.warning("a label is read without comparing it with its image: %s", type(error).__name__)
        return None


def require_fit(label: Grid, image: Grid) -> None:
    """Refuse a label whose grid differs from that of its image, with the same tolerance as when it was saved.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    if not label.matches(image):
        raise LabelGeometryError(
            f"the image changed after this label. {differences(label, image)}",
            hint="segment the image as it is now; the label stays in XNAT",
        )


def require_fit_of_file(path: Path, image: Grid) -> None:
    """Refuse a label map on this machine whose grid differs from that of its image; only NIfTI files are compared.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    label = grid_of_file(path)
    if label is not None:
        require_fit(label, image)


def require_fit_of_description(description: Mapping[str, Any], image: Grid) -> None:
    """Refuse a label if the geometry in its description differs from that of its image.

    A description without a geometry is not compared. The geometry may also be one that another program, or an earlier
    release of this package, read from the image's file.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    geometry = description.get("geometry")
    if not isinstance(geometry, Mapping):
        return
    try:
        label = Grid(
            tuple(int(size) for size in geometry["shape"]),
            np.asarray(geometry["affine"], dtype=np.float64).reshape(4, 4),
        )
    except (KeyError, TypeError, ValueError):
        return
    if not image.is_other_form(label):
        require_fit(label, image)


def grid_of_file(path: Path) -> Grid | None:
    """Return the grid of a label map on this machine; None if it is not a NIfTI file."""
    try:
        return Grid.of_nifti(path)
    except ValueError:
        return None


def mark_of(grid: Grid) -> str:
    """Return a short text for a file name that is different for each grid."""
    text = f"{grid.shape} {np.round(grid.affine, 4).tolist()}"
    return text_digest(text)[:8]


def place(source: Path, grid: Grid, target: Path) -> None:
    """Write one of our labels with the affine of a grid; its voxels stay as they are.

    It was saved when the image's file was read with another affine.
    """
    write_label(replace(read_label(source), affine=grid.affine), target)


def align(source: Path, grid: Grid, target: Path) -> None:
    """Write a label of another program on a grid.

    Raises
    ------
    LabelGeometryError
        If it does not lie on the grid.
    LabelFileError
        If it is not a label map.
    """
    try:
        label = read_incoming(source, lambda: grid).label
    except LabelGeometryError as error:
        raise LabelGeometryError(
            f"the image changed after this label, or it was made for another one: {error.message}",
            hint="repair the label in XNAT, or segment the image as it is now",
        ) from error
    if label is None:
        raise LabelFileError(f"{source.name} is no label map", hint="mend the setting label_resource")
    write_label(label, target)
