"""Writing label maps as DICOM SEG objects, for viewers and ROI collections."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monailabel_xnat.convert.dicom.series import read_series
from monailabel_xnat.convert.dicom.volume import VolumePlan, plan_volume
from monailabel_xnat.convert.geometry import LPS_TO_RAS, Plane, voxel_spacing
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.labelmap import LabelMap, Segment, to_grid
from monailabel_xnat.convert.seg.header import derivation, plane_position, referenced_series, seg_header
from monailabel_xnat.convert.seg.segments import items
from monailabel_xnat.disk import private_opener, whole
from monailabel_xnat.errors import LabelError

ALGORITHM_TYPES = ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")

_LARGEST_ELEMENT = 0xFFFFFFFE
_FRAME_GROUPS = (0x5200, 0x9230)
_PIXEL_DATA = (0x7FE0, 0x0010)
_ITEM = struct.pack("<HH", 0xFFFE, 0xE000)


@dataclass(frozen=True)
class _Mask:
    """One frame of the SEG: the voxels of one slice that have the same value."""

    value: int
    number: int
    slice: int


def write_seg(
    label: LabelMap,
    images: Sequence[Path],
    target: Path,
    *,
    description: str,
    algorithm_type: str,
    algorithm_name: str = "",
    instance_uid: str | None = None,
    tilted: bool = False,
) -> None:
    """Write a label map as a DICOM SEG of type BINARY, uncompressed, without empty frames (DICOM PS3.3 A.51).

    Each frame has exactly the position of the image that it was drawn on, and refers to that image. Segments are
    numbered from 1 in the order of their values. Segment Description keeps the value, so that `read_seg` returns the
    same label map.

    Parameters
    ----------
    label : LabelMap
        A label on the grid of the volume that the images make. Its axes may have any order and direction.
    images : sequence of Path
        The DICOM files of the series.
    target : Path
        The file to write. It appears only when it is whole.
    description : str
        Series Description: the name that XNAT and viewers show. It is cut after 64 characters.
    algorithm_type : str
        ``MANUAL``, ``SEMIAUTOMATIC`` or ``AUTOMATIC``: how the segments were made.
    algorithm_name : str
        Name of the model; not used if ``algorithm_type`` is ``MANUAL``.
    instance_uid : str, optional
        SOP Instance UID; by default a new one is made. The Series Instance UID and others are derived from it.
    tilted : bool
        Whether the label lies on slices of a tilted gantry that were stacked straight (setting ``gantry_tilt``). The
        frames are written where these slices truly lie.

    Raises
    ------
    ValueError
        If the algorithm type is unknown.
    LabelError
        If the label is empty or too large for a SEG, the images do not say where they lie, or they are mosaics.
    LabelGeometryError
        If the label does not lie on the grid of the images.
    ImageError
        If the images do not make one volume.
    """
    if algorithm_type not in ALGORITHM_TYPES:
        raise ValueError(f"unknown algorithm type {algorithm_type!r}; one of {', '.join(ALGORITHM_TYPES)}")
    plan = plan_volume(read_series(images), tilted=tilted)
    if plan.headers[plan.frames[0].path].tiles:
        raise LabelError("a DICOM SEG cannot refer to the tiles of a mosaic", hint="keep this label as NIfTI")
    voxels = _on_grid_of(plan, label)
    masks, values = _find_masks(voxels)
    uid = instance_uid or str(generate_uid())
    planes = _planes_of(plan)
    named = {segment.value: segment for segment in label.segments}
    header = seg_header(
        plan.headers[plan.frames[0].path],
        planes[0],
        float(voxel_spacing(plan.affine)[2]),
        [named.get(value, Segment(value, f"Segment {value}")) for value in values],
        description=description,
        algorithm_type=algorithm_type,
        algorithm_name=algorithm_name,
        instance_uid=uid,
    )
    header.NumberOfFrames = len(masks)
    header.ReferencedSeriesSequence = referenced_series(plan.frames, plan.headers)
    _write_file(target, header, _frame_groups(plan, planes, masks), voxels, masks)


def _on_grid_of(plan: VolumePlan, label: LabelMap) -> npt.NDArray[Any]:
    """Return the voxels (i, j, k) of a label in the index order of the images, each slice in one block of memory."""
    image = plan.headers[plan.frames[0].path]
    grid = Grid((image.columns, image.rows, plan.slices), LPS_TO_RAS @ plan.affine)
    return np.asfortranarray(to_grid(label, grid).array)


def _find_masks(voxels: npt.NDArray[Any]) -> tuple[list[_Mask], list[int]]:
    """Return the frames that are not empty, one segment after the other, and the values of the segments."""
    present = [np.flatnonzero(np.bincount(voxels[:, :, k].ravel(order="K"))) for k in range(voxels.shape[2])]
    pairs = sorted((int(value), k) for k, found in enumerate(present) for value in found if value)
    if not pairs:
        raise LabelError("the label is empty; a DICOM SEG holds at least one segment", hint="keep this label as NIfTI")
    values = sorted({value for value, _ in pairs})
    numbers = {value: number for number, value in enumerate(values, start=1)}
    return [_Mask(value, numbers[value], k) for value, k in pairs], values


def _planes_of(plan: VolumePlan) -> list[Plane]:
    """Return the place of each slice. In a 4-D series, these are the slices of the first volume."""
    planes = [frame.plane for frame in plan.frames[: plan.slices] if frame.plane is not None]
    if len(planes) < plan.slices:
        message = "the images do not say where in the patient they lie, which a DICOM SEG must"
        raise LabelError(message, hint="keep this label as NIfTI")
    return planes


def _frame_groups(plan: VolumePlan, planes: Sequence[Plane], masks: Sequence[_Mask]) -> Iterator[bytes]:
    """Return the encoded items of the Per-Frame Functional Groups Sequence.

    Parts that repeat are encoded only once: the image and its place for each slice, and the number for each segment.
    """
    ranks = {k: rank for rank, k in enumerate(sorted({mask.slice for mask in masks}), start=1)}
    sources, positions = {}, {}
    for k in ranks:
        frame = plan.frames[k]
        sources[k] = _encoded(DerivationImageSequence=derivation(frame, plan.headers[frame.path]))
        positions[k] = _encoded(PlanePositionSequence=plane_position(planes[k]))
    segments = {
        number: _encoded(SegmentIdentificationSequence=items(ReferencedSegmentNumber=number))
        for number in {mask.number for mask in masks}
    }
    for mask in masks:
        content = _encoded(FrameContentSequence=items(DimensionIndexValues=[mask.number, ranks[mask.slice]]))
        group = sources[mask.slice] + content + positions[mask.slice] + segments[mask.number]
        yield _ITEM + struct.pack("<I", len(group)) + group


def _write_file(
    target: Path, header: Dataset, groups: Iterator[bytes], voxels: npt.NDArray[Any], masks: Sequence[_Mask]
) -> None:
    groups_data = b"".join(groups)
    length = (len(masks) * voxels.shape[0] * voxels.shape[1] + 7) // 8
    padded = length + length % 2
    if padded > _LARGEST_ELEMENT:
        message = f"the segmentation takes {padded} bytes as DICOM SEG, which holds at most {_LARGEST_ELEMENT}"
        raise LabelError(message, hint="keep this label as NIfTI")
    with whole(target) as temporary, open(temporary, "xb", opener=private_opener) as stream:
        stream.write(_file_start(header))
        # The last two elements are written without pydicom, which would take most of the time for the first and
        # copy the second in memory.
        _write_element_head(stream, _FRAME_GROUPS, b"SQ", len(groups_data))
        stream.write(groups_data)
        _write_element_head(stream, _PIXEL_DATA, b"OB", padded)
        for packed in _packed(voxels, masks):
            stream.write(packed)
        stream.write(bytes(padded - length))


def _file_start(header: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta)
    return bytes(buffer.getvalue()) + _encode(header)


def _encoded(**sequence: Any) -> bytes:
    return _encode(items(**sequence)[0])


def _encode(dataset: Dataset) -> bytes:
    """Encode a dataset as Explicit VR Little Endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def _write_element_head(stream: BinaryIO, tag: tuple[int, int], kind: bytes, length: int) -> None:
    stream.write(struct.pack("<HH2sHI", *tag, kind, 0, length))


def _packed(voxels: npt.NDArray[Any], masks: Sequence[_Mask]) -> Iterator[bytes]:
    """Return the masks as bits, with the first pixel in the lowest bit. A frame may begin within a byte."""
    pixels = voxels.shape[0] * voxels.shape[1]
    # Eight frames together always end at the end of a byte.
    together = 1 if pixels % 8 == 0 else 8
    remaining = iter(masks)
    while chunk := list(islice(remaining, together)):
        bits = [(voxels[:, :, mask.slice] == mask.value).ravel(order="F") for mask in chunk]
        yield np.packbits(bits[0] if together == 1 else np.concatenate(bits), bitorder="little").tobytes()
