"""Label files on this machine: fetched once, verified, and given only where they fit their image as it is now.

An image may have been replaced in XNAT since its label was made.
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
    """A folder of label files, one for each image, tag and version; a version never changes.

    Parameters
    ----------
    session : Session
        The connection.
    folder : Path
        Made when the first label comes.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._folder = folder

    def path(self, image: ImageId, tag: str, version: LabelVersion) -> Path:
        """Return the file of a version, fetched if it is not there.

        Raises
        ------
        TransferError
            If what XNAT sends is not what was saved.
        ServerError
            If XNAT fails.
        CacheError
            If the disk does not take it.
        """
        path = self._path(image, tag, version)
        if not _is_whole(path, version):
            with self._arriving(path) as temporary:
                self._fetch(version, temporary)
        return path

    def keep(self, image: ImageId, tag: str, version: LabelVersion, source: Path) -> Path:
        """Take over the file of a version from the outbox, without copying it where the disk allows.

        Raises
        ------
        CacheError
            If it is not what was saved.
        """
        path = self._path(image, tag, version)
        if not _is_whole(path, version):
            # What is open can be copied also after another process has taken it out of the outbox.
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
        """Return the file that was made of another label map, made if it is not there.

        Parameters
        ----------
        path : Path
            The other one, in this folder.
        mark : str
            What was done with it, fit for a file name.
        write : callable
            Writes it to a path, in one step.
        """
        target = path.with_name(f"{path.name[: -len(LABEL_MAP)]}_{mark}{LABEL_MAP}")
        if not target.exists():
            write(target)
        return target

    def discard(self, image: ImageId, tag: str, version: LabelVersion) -> None:
        """Remove the file of a version that was deleted."""
        self._path(image, tag, version).unlink(missing_ok=True)

    def _path(self, image: ImageId, tag: str, version: LabelVersion) -> Path:
        # No dot but that of the extension: MONAI Label takes all that follows the first for it.
        text = f"{image.subject}_{image.experiment}_{image.scan}_{tag}_{version.name}"
        stem = safe_name(text, f"{image} {tag} {version.name}")
        return self._folder / (stem + version.extension)

    def _fetch(self, version: LabelVersion, target: Path) -> None:
        assert version.file is not None  # noqa: S101 - only what waits in the outbox has none
        fetched = fetch(self._session, version.file, target)
        found = fetched.sha256
        # What the built-in datastore left is not named by us; XNAT's size and its digest tell, where it lists them.
        is_listed = version.file.size in (None, fetched.size) and version.file.md5 in ("", fetched.md5)
        if found.startswith(version.digest) if version.saved_at is not None else is_listed:
            return
        raise TransferError(
            f"XNAT sent something else than was saved as {version.file.path}: {fetched.size} bytes of "
            f"{version.file.size}, SHA-256 {found[:12]}",
            hint="try again; if it stays, restore an earlier version of the label",
            url=version.file.uri,
        )

    @contextmanager
    def _arriving(self, path: Path) -> Iterator[Path]:
        """Yield a temporary name; what is there at the end appears under its own in one step."""
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
    """Return the grid of an image as it is now; None if the image cannot be had, so that nothing can be compared."""
    try:
        return images.grid(scan)
    except (ServerError, ImageError) as error:
        logger.warning("a label is read without comparing it with its image: %s", type(error).__name__)
        return None


def require_fit(label: Grid, image: Grid) -> None:
    """Compare a label with its image, as closely as where it was saved.

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
    """Compare a label map on this machine (NIfTI) with its image; what is no NIfTI file is not compared.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    label = grid_of_file(path)
    if label is not None:
        require_fit(label, image)


def require_fit_of_description(description: Mapping[str, Any], image: Grid) -> None:
    """Compare the geometry in a label's description with its image; one without geometry is not compared.

    It may also be what another program, or an earlier version, understood of the image's file.

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
    """Return the grid of a label map on this machine; None if it is no NIfTI file."""
    try:
        return Grid.of_nifti(path)
    except ValueError:
        return None


def mark_of(grid: Grid) -> str:
    """Return a short text that differs for another grid, fit for a file name."""
    text = f"{grid.shape} {np.round(grid.affine, 4).tolist()}"
    return text_digest(text)[:8]


def place(source: Path, grid: Grid, target: Path) -> None:
    """Write a label of ours, saved when the file of its image was understood otherwise, voxel by voxel on a grid."""
    write_label(replace(read_label(source), affine=grid.affine), target)


def align(source: Path, grid: Grid, target: Path) -> None:
    """Write what others left on a grid."""
    try:
        label = read_incoming(source, lambda: grid).label
    except LabelGeometryError as error:
        raise LabelGeometryError(
            f"the image changed after this label, or it was made for another one: {error.message}",
            hint="mend the label in XNAT, or segment the image as it is now",
        ) from error
    if label is None:
        raise LabelFileError(f"{source.name} is no label map", hint="mend the setting label_resource")
    write_label(label, target)
