"""Conversion of a DICOM series to a NIfTI file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.dicom.alike import HeaderReader
from monailabel_xnat.convert.dicom.headers import ImageHeader, OtherFile
from monailabel_xnat.convert.dicom.pixels import SliceValues, common_dtype
from monailabel_xnat.convert.dicom.series import Source, choose_series, list_files, name_of_source
from monailabel_xnat.convert.dicom.slices import SliceReader, is_plain
from monailabel_xnat.convert.dicom.volume import VolumePlan, plan_volume
from monailabel_xnat.convert.geometry import LPS_TO_RAS, Floats
from monailabel_xnat.convert.nifti import LARGEST_SIZE, write_nifti
from monailabel_xnat.disk import private_folder, write_whole
from monailabel_xnat.errors import ImageConversionError

if TYPE_CHECKING:
    from typing import TypeGuard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedVolume:
    """What `dicom_to_nifti` wrote.

    Parameters
    ----------
    path : Path
        The NIfTI file.
    shape : tuple of int
        Columns, rows, slices. A 4-D image has the volumes as a further axis, and a colour image its samples.
    affine : ndarray (4, 4), float64
        Voxel index to RAS, mm.
    dtype : dtype
        The smallest of uint8, int16, uint16, int32, float32 and float64 that holds the values exactly.
    notes : tuple of str
        Which files were not used, and how the volumes of a 4-D series were told apart.
    warnings : tuple of str
        The notes that make the image doubtful.
    series_uid, study_uid : str
        Series and Study Instance UID.
    sop_instance_uids : tuple of str
        SOP Instance UID of the image of each slice, slice after slice and volume after volume. The slices of a
        multi-frame file all have the UID of that file.
    frame_numbers : tuple of int
        Number of each slice's frame in its file, from 1. It is 0 for a tile of a mosaic, which is not a frame.
    modality : str
        Modality, e.g. ``CT``.
    shear : ndarray (3,) or None
        For slices of a tilted gantry that were stacked straight: how much further (RAS, mm) each slice truly lies
        beside its place in the volume than the slice before. None for any other image.
    sha256 : str
        Hexadecimal SHA-256 of the file.
    """

    path: Path
    shape: tuple[int, ...]
    affine: Floats
    dtype: np.dtype[Any]
    notes: tuple[str, ...]
    series_uid: str
    study_uid: str
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...]
    modality: str
    warnings: tuple[str, ...] = ()
    shear: Floats | None = None
    sha256: str = ""


def dicom_to_nifti(
    source: Source, out_path: str | Path, *, series_uid: str | None = None, gantry_tilt: str = "refuse"
) -> ConvertedVolume:
    """Convert a DICOM series to a NIfTI file.

    Voxels, index order and affine are the same that MONAI's ``ITKReader().read`` gives for the folder. A series of
    several volumes is written as a 4-D image. A series that is neither is refused.

    Parameters
    ----------
    source : path or sequence of paths
        A folder, which is searched with its sub-folders, or files. The names of the files do not matter.
    out_path : str or Path
        The file to write, ``.nii`` or ``.nii.gz``. It appears only when it is whole. An existing file is replaced.
    series_uid : str, optional
        Series Instance UID. It is needed only if there are images of several series.
    gantry_tilt : str
        What to do with slices that a tilted gantry shifted sideways: ``refuse`` them, or ``stack`` them as if they lay
        straight above each other, with a warning.

    Returns
    -------
    ConvertedVolume
        What was written.

    Raises
    ------
    ValueError
        If the name of the file to write ends otherwise.
    NoImageError
        If there is no image.
    ImageConversionError
        If the images do not make one volume or a 4-D image, or a file is damaged. The message names files and numbers.
    """
    target = _checked_target(out_path)
    with Conversion(name_of_source(source), series_uid=series_uid) as conversion:
        for path in list_files(source):
            conversion.add(path)
        return conversion.finish(target, series_uid=series_uid, gantry_tilt=gantry_tilt)


class Conversion:
    """A conversion of files that arrive one after the other. It is a context manager.

    The header and the pixels of each file are read when the file arrives; compressed pixels are decoded in other
    threads. The result does not depend on the order in which the files arrive.

    Parameters
    ----------
    place : str
        Where the files lie, for messages.
    series_uid : str, optional
        Series Instance UID that `finish` will probably be asked for. Pixels of other series are not read ahead.
    """

    def __init__(self, place: str = "the given files", *, series_uid: str | None = None) -> None:
        self._place = place
        self._likely = series_uid
        self._headers: dict[Path, ImageHeader | OtherFile | Exception] = {}
        self._reader = HeaderReader()
        self._slices = SliceReader()

    def __enter__(self) -> Conversion:
        return self

    def __exit__(self, *_: object) -> None:
        self._slices.close()

    def add(self, path: Path) -> None:
        """Read a file. If it was added before, it is read again. An error in it is kept and raised by `finish`.

        Parameters
        ----------
        path : Path
            The file, which must be complete.
        """
        with self._noting(path):
            header = self._headers[path] = self._reader.read(path)
            if self._is_likely(header):
                self._slices.start(header)

    def take(self, path: Path, content: bytes) -> None:
        """Read a file from memory, like `add`.

        An image is written to the disk, unless its pixels are read ahead and can be copied from memory.

        Parameters
        ----------
        path : Path
            Where the file would lie; it is written there if needed.
        content : bytes
            Its content.
        """
        with self._noting(path):
            header = self._headers[path] = self._reader.read(path, content)
            if isinstance(header, ImageHeader) and not (self._is_likely(header) and is_plain(header)):
                private_folder(path.parent)
                write_whole(path, content)
                header = self._headers[path] = replace(header, held=None)
            if self._is_likely(header):
                self._slices.start(header)

    @property
    def series_uids(self) -> list[str]:
        """The Series Instance UID of each image file that was added, in the order of the files."""
        return [header.series_uid for header in self._headers.values() if isinstance(header, ImageHeader)]

    def finish(
        self,
        out_path: str | Path,
        *,
        series_uid: str | None = None,
        one_scan: bool = False,
        gantry_tilt: str = "refuse",
    ) -> ConvertedVolume:
        """Write the NIfTI file, after all files were added; the rules are those of `dicom_to_nifti`.

        Parameters
        ----------
        out_path : str or Path
            The file to write.
        series_uid : str, optional
            Series Instance UID. It is needed only if there are images of several series.
        one_scan : bool
            Whether an archive keeps the files as one scan. Then images of which each has its own series UID are joined
            to one volume, with a warning, if they make a regular stack. A series is refused if it makes one regular
            stack only together with images of another series.
        gantry_tilt : str
            As for `dicom_to_nifti`.

        Returns
        -------
        ConvertedVolume
            What was written.

        Raises
        ------
        ValueError, NoImageError, ImageConversionError
            As `dicom_to_nifti`. If several files are damaged, the error names the first one by path.
        """
        target = _checked_target(out_path)
        headers: list[ImageHeader | OtherFile] = []
        for _, header in sorted(self._headers.items()):
            if isinstance(header, Exception):
                raise header
            headers.append(header)
        series = choose_series(headers, self._place, series_uid, one_scan=one_scan)
        plan = plan_volume(series, tilted=gantry_tilt == "stack")
        for note in plan.notes:
            logger.debug("Converting to %s: %s", target.name, note)
        return _write(target, plan, self._slices.read(plan.frames, plan.headers))

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        self._slices.forget(path)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of several damaged files the first by path is named
            self._headers[path] = error

    def _is_likely(self, header: ImageHeader | OtherFile) -> TypeGuard[ImageHeader]:
        return isinstance(header, ImageHeader) and self._likely in (None, header.series_uid)


def _checked_target(out_path: str | Path) -> Path:
    target = Path(out_path)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"the name must end in .nii or .nii.gz: {target.name}")
    return target


def _write(target: Path, plan: VolumePlan, slices: Sequence[SliceValues]) -> ConvertedVolume:
    dtype = common_dtype(slices)
    affine: Floats = LPS_TO_RAS @ plan.affine
    first = plan.headers[plan.frames[0].path]
    samples = slices[0].stored.shape[2:]
    shape = _shape(plan, first.columns, first.rows, samples)
    sha256 = write_nifti(target, shape, affine, dtype, _blocks(slices, dtype, samples))
    return ConvertedVolume(
        path=target,
        shape=shape,
        affine=affine,
        dtype=dtype,
        notes=plan.notes,
        series_uid=first.series_uid,
        study_uid=first.study_uid,
        sop_instance_uids=tuple(plan.headers[frame.path].sop_instance_uid for frame in plan.frames),
        frame_numbers=tuple(0 if first.tiles else frame.index + 1 for frame in plan.frames),
        modality=first.modality,
        warnings=plan.warnings,
        shear=None if plan.shear is None else LPS_TO_RAS[:3, :3] @ plan.shear,
        sha256=sha256,
    )


def _shape(plan: VolumePlan, columns: int, rows: int, samples: Sequence[int]) -> tuple[int, ...]:
    shape: tuple[int, ...] = (columns, rows, plan.slices)
    if plan.volumes > 1:
        shape = (*shape, plan.volumes)
    shape = (*shape, *samples)
    if max(shape) > LARGEST_SIZE:
        message = f"an image of {' x '.join(map(str, shape))} voxels does not fit into NIfTI"
        raise ImageConversionError(message, hint=f"no side may be longer than {LARGEST_SIZE}")
    return shape


def _blocks(slices: Sequence[SliceValues], dtype: np.dtype[Any], samples: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
    """Return the voxels in the order of the NIfTI file: slice after slice, for one colour after the other."""
    if not samples:
        yield from (part.values(dtype) for part in slices)
        return
    for sample in range(samples[0]):
        yield from (part.values(dtype)[..., sample] for part in slices)
