"""Reading a label as a client sends it: it is put on the grid of its image and written as the file that is stored."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monailabel_xnat.convert import Grid, LabelMap, read_label, read_seg, to_grid, write_label
from monailabel_xnat.errors import CacheError, ImageError, LabelFileError, ServerError
from monailabel_xnat.images.imagefile import check_data_file, true_ending
from monailabel_xnat.labels.version import LABEL_MAP, RESULT

logger = logging.getLogger(__name__)


# The longest come first. A file may have any name, so its suffixes say nothing: "1.2.840.seg.nrrd" has four of them.
_EXTENSIONS = (".seg.nrrd", ".nii.gz", ".nrrd", ".json", ".nii", ".mha", ".mhd", ".bin", ".dcm")
_HEAD_BYTES = 400
# Files of bare voxels, and DICOM SEG objects, whose frames are placed by the slices of the image.
_NEED_THE_IMAGE = (".bin", ".dcm")


@dataclass(frozen=True, eq=False)
class IncomingLabel:
    """A label that is ready to be stored.

    Parameters
    ----------
    label : LabelMap or None
        The label map. It is on the grid of its image, unless there was a ``problem``.
    result : bytes
        If there is no label map: the JSON result of a task that is not a segmentation, as it was sent.
    file_type : str
        Extension of the file that was sent.
    problem : ServerError, CacheError or None
        Why the image was not available, so that the label was not compared with it.
    raw : Path or None
        The file that was sent, if it can be read only together with its image and the image was not available.
    """

    label: LabelMap | None
    result: bytes
    file_type: str
    problem: ServerError | CacheError | None = None
    raw: Path | None = None

    @property
    def suffix(self) -> str:
        """The end of its file's name in XNAT; for a raw label, the extension of the file that was sent."""
        if self.raw:
            return self.file_type
        return LABEL_MAP if self.label else RESULT

    def write(self, path: Path) -> None:
        """Write the file that is stored in XNAT, or the raw file that waits in the outbox."""
        if self.raw:
            shutil.copyfile(self.raw, path)
        elif self.label:
            write_label(self.label, path)
        else:
            path.write_bytes(self.result)


def read_incoming(source: Path, grid: Callable[[], Grid]) -> IncomingLabel:
    """Read a label, and put it on the grid of its image.

    Parameters
    ----------
    source : Path
        NIfTI, NRRD (also ``.seg.nrrd``), MetaImage, DICOM SEG, JSON, or ``.bin``. The last holds bare voxels of 1 or 2
        bytes (little endian) in Fortran order on the grid of the image. The content decides which it is; the name
        matters only if the content does not show it.
    grid : callable
        Returns the grid of the image. It is called only for a label map. If it raises a ServerError or a CacheError,
        the label is accepted without a comparison.

    Raises
    ------
    LabelFileError
        If the file is missing, empty or not a label.
    LabelGeometryError
        If the label does not lie on the grid.
    """
    if not source.is_file():
        raise LabelFileError(f"no such label file: {source}", hint="check the path")
    if source.stat().st_size == 0:
        raise LabelFileError(f"the label file is empty: {source.name}", hint="save the segmentation again")
    extension = _extension_of(source)
    if extension == ".json":
        return IncomingLabel(None, _checked_json(source), extension)
    found: Grid | None = None
    problem: ServerError | CacheError | None = None
    try:
        found = grid()
    except (ServerError, CacheError) as error:
        logger.info("a label is taken without comparing it with its image, which cannot be had: %s", error)
        problem = error
    # Read it also without an image, so that a file that is not a label is refused. With the image, a label that is too
    # large is refused before it takes memory.
    label = None if extension in _NEED_THE_IMAGE else _read_as(source, extension, found)
    if found is None:
        return IncomingLabel(label, b"", extension, problem, raw=None if label else source)
    if extension == ".bin":
        return IncomingLabel(_read_voxels(source, found), b"", extension)
    if extension == ".dcm":
        return IncomingLabel(read_seg(source, found), b"", extension)
    assert label is not None  # noqa: S101 - it is None only for the two kinds above
    return IncomingLabel(to_grid(label, found, any_extent=True), b"", extension)


def _extension_of(source: Path) -> str:
    """Return the extension that fits the content of a file; "" if its kind is not known."""
    name = source.name.lower()
    named = next((extension for extension in _EXTENSIONS if name.endswith(extension)), "")
    if named == ".bin":
        return named
    found = true_ending(source)
    if not found:
        with source.open("rb") as stream:
            found = ".json" if stream.read(_HEAD_BYTES).lstrip()[:1] in (b"{", b"[") else ""
    # Some facts stand only in the name: that an NRRD file is a segmentation, and that voxels lie beside their header.
    return named if not found or named.endswith(found) or (named, found) == (".mhd", ".mha") else found


def _checked_json(source: Path) -> bytes:
    content = source.read_bytes()
    try:
        json.loads(content)
    except ValueError as error:
        raise LabelFileError(
            f"{source.name} is no JSON file: {error}", hint="send the result of the task again"
        ) from error
    return content


def _read_voxels(source: Path, grid: Grid) -> LabelMap:
    voxels, size = int(np.prod(grid.shape)), source.stat().st_size
    kinds = {voxels: "u1", 2 * voxels: "<u2"}
    if size not in kinds:
        raise LabelFileError(
            f"{source.name} has {size} bytes, but the image has {' x '.join(map(str, grid.shape))} = {voxels} voxels",
            hint="send 1 or 2 bytes for each voxel of the image",
        )
    array = np.fromfile(source, dtype=kinds[size]).reshape(grid.shape, order="F")
    return LabelMap(array.astype(array.dtype.newbyteorder("=")), grid.affine)


def _read_as(source: Path, extension: str, image: Grid | None) -> LabelMap:
    """Read a label map by the extension that fits its content, whatever the name of the file is."""
    try:
        check_data_file(source, [path.name for path in source.parent.iterdir()])
    except ImageError as error:
        raise LabelFileError(error.message, hint="save the segmentation in one file") from error
    if not extension or source.name.lower().endswith(extension):
        return read_label(source, image)
    with tempfile.TemporaryDirectory(prefix="label-") as folder:
        named = Path(folder) / f"label{extension}"
        try:
            os.link(source, named)
        except OSError:  # another disk
            shutil.copyfile(source, named)
        return read_label(named, image)
