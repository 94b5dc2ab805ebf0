"""DICOM to NIfTI."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import LPS_TO_RAS, Floats
from monailabel_xnat.convert.nifti import LARGEST_SIZE, write_nifti
from monailabel_xnat.convert.pixels import SliceValues, common_dtype, read_slices
from monailabel_xnat.convert.series import Source, read_series
from monailabel_xnat.convert.volume import VolumePlan, plan_volume
from monailabel_xnat.errors import ImageConversionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedVolume:
    """What `dicom_to_nifti` wrote.

    Parameters
    ----------
    path : Path
        The NIfTI file.
    shape : tuple of int
        Columns, rows, slices; in 4-D then volumes, or the samples of a colour image.
    affine : ndarray (4, 4), float64
        Voxel index to RAS, mm.
    dtype : dtype
        The smallest of uint8, int16, uint16, int32, float32 and float64 that holds the values exactly.
    notes : tuple of str
        What was left aside, and how volumes were told apart.
    series_uid, study_uid : str
        Series and Study Instance UID.
    sop_instance_uids : tuple of str
        SOP Instance UID of each slice, in the order of the slices (of the volumes, then): one UID
        again and again for a multi-frame file.
    frame_numbers : tuple of int
        Number of each slice's frame in its file, from 1.
    modality : str
        Modality, e.g. ``CT``.
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


def dicom_to_nifti(source: Source, out_path: str | Path, *, series_uid: str | None = None) -> ConvertedVolume:
    """Convert a DICOM series to a NIfTI file.

    Voxels, index order and affine are those that MONAI's ``ITKReader().read`` gives for the folder. What is not
    one volume is refused, or written as the 4-D image that it is.

    Parameters
    ----------
    source : path or sequence of paths
        A folder, searched with its sub-folders, or files. Names do not matter.
    out_path : str or Path
        The file to write, ``.nii`` or ``.nii.gz``. It appears only when it is whole; one that exists is replaced.
    series_uid : str, optional
        Series Instance UID, needed where several series lie together.

    Returns
    -------
    ConvertedVolume
        What was written.

    Raises
    ------
    NoImageError
        If there is no image.
    ImageConversionError
        If the series is not one volume, or a file is damaged. The message names files and numbers.
    """
    target = Path(out_path)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"the name must end in .nii or .nii.gz: {target.name}")
    plan = plan_volume(read_series(source, series_uid))
    for note in plan.notes:
        logger.debug("Converting to %s: %s", target.name, note)
    slices = read_slices(plan.frames, plan.headers)
    dtype = common_dtype(slices)
    affine: Floats = LPS_TO_RAS @ plan.affine
    first = plan.headers[plan.frames[0].path]
    shape = _shape(plan, first.columns, first.rows, slices[0].stored.shape[2:])
    write_nifti(target, shape, affine, dtype, _blocks(slices, dtype, samples=slices[0].stored.shape[2:]))
    return ConvertedVolume(
        path=target,
        shape=shape,
        affine=affine,
        dtype=dtype,
        notes=plan.notes,
        series_uid=first.series_uid,
        study_uid=first.study_uid,
        sop_instance_uids=tuple(plan.headers[frame.path].sop_instance_uid for frame in plan.frames),
        frame_numbers=tuple(frame.index + 1 for frame in plan.frames),
        modality=first.modality,
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
    """Give the voxels in the order of the file: one colour after the other, slice after slice."""
    if not samples:
        yield from (part.values(dtype) for part in slices)
        return
    for sample in range(samples[0]):
        yield from (part.values(dtype)[..., sample] for part in slices)
