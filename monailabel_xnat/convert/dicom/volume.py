"""Planning the volume of a series: its frames, their order, the grid, and the image that each slice was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monailabel_xnat.convert.dicom.decoding import file_geometry
from monailabel_xnat.convert.dicom.frames import Frame
from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.convert.dicom.repeats import drop_identical_files, order_repeats
from monailabel_xnat.convert.dicom.series import Series, name_files, read_series
from monailabel_xnat.convert.dicom.stack import plane_of, regular_stack
from monailabel_xnat.convert.geometry import ORIENTATION_TOLERANCE, Floats, affine_of_planes
from monailabel_xnat.convert.grid import Sources
from monailabel_xnat.errors import ImageConversionError

_CROSS_SECTIONS = frozenset(
    (
        "1.2.840.10008.5.1.4.1.1.2",  # CT
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4",  # MR
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.3",  # Enhanced MR Color
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
        "1.2.840.10008.5.1.4.1.1.128",  # PET
        "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
        "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
        "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    )
)
"""SOP classes of images that must state their position and the size of their pixels (DICOM PS3.3 A.3, A.4, A.18, A.21,
A.36, A.38)."""

_CHOOSE_OTHER = "choose another scan, or convert this one by hand and attach it as resource NIFTI"


@dataclass(frozen=True)
class VolumePlan:
    """How the frames of a series make a volume.

    Parameters
    ----------
    frames : tuple of Frame
        The frames in order: slice after slice, volume after volume.
    slices, volumes : int
        Number of slices in a volume, and number of volumes.
    affine : ndarray (4, 4)
        Voxel index to LPS, mm.
    headers : mapping of Path to ImageHeader
        The headers of the files.
    notes : tuple of str
        What users should know about the volume.
    warnings : tuple of str
        The notes that make the volume doubtful.
    shear : ndarray (3,) or None
        How much further (LPS, mm) each slice truly lies beside its place in the volume than the slice before; None if
        the slices lie straight above each other.
    """

    frames: tuple[Frame, ...]
    slices: int
    volumes: int
    affine: Floats
    headers: Mapping[Path, ImageHeader]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    shear: Floats | None = None


def plan_volume(series: Series, *, tilted: bool = False) -> VolumePlan:
    """Return the plan of the one volume, or of the 4-D image, that a series makes.

    Parameters
    ----------
    series : Series
        The images.
    tilted : bool
        Whether slices that a tilted gantry shifted sideways are stacked as if they lay straight above each other.

    Raises
    ------
    ImageConversionError
        If the series does not make one: orientations differ, or slices are missing, unevenly spaced, shifted sideways
        or doubled.
    """
    images, dropped = drop_identical_files(series.images)
    headers = {image.path: image for image in images}
    frames = [frame for image in images for frame in image.frames]
    placed = [frame for frame in frames if frame.plane is not None]
    if not placed:
        return _plan_unplaced(images, headers, (*series.notes, *dropped))
    if len(placed) < len(frames):
        missing = name_files(frame.path for frame in frames if frame.plane is None)
        message = f"no position or orientation in {len(frames) - len(placed)} of {len(frames)} images: {missing}"
        raise ImageConversionError(message, hint=_CHOOSE_OTHER)
    notes = (*series.notes, *dropped, *_unmeasured(frames, headers))
    stack = regular_stack(frames, tilted=tilted)
    groups, shear = stack.groups, stack.shear
    warnings = (*_joined(series, groups), *stack.warnings)
    _refuse_a_part(series, frames)
    if _runs_backwards(groups, images):
        groups.reverse()
        shear = None if shear is None else -shear
    ordered, repeats = order_repeats([[frames[index] for index in group] for group in groups], headers)
    volumes = len(ordered) // len(groups)
    return VolumePlan(
        frames=tuple(ordered),
        slices=len(groups),
        volumes=volumes,
        affine=_affine(ordered[: len(groups)], headers, is_tilted=shear is not None),
        headers=headers,
        notes=(*notes, *repeats, *warnings),
        warnings=warnings,
        shear=shear,
    )


def _unmeasured(frames: Sequence[Frame], headers: Mapping[Path, ImageHeader]) -> list[str]:
    """Return a note on frames whose header states no size of pixels; refuse those that must state it."""
    missing = [frame.path for frame in frames if not frame.is_measured]
    cross_sections = [path for path in missing if headers[path].sop_class in _CROSS_SECTIONS]
    if cross_sections:
        raise ImageConversionError(
            f"no Pixel Spacing above 0 in {len(cross_sections)} of {len(frames)} images: {name_files(cross_sections)}",
            hint=_CHOOSE_OTHER,
        )
    return [f"no Pixel Spacing in {len(missing)} of {len(frames)} images, which ITK takes for 1 mm"] if missing else []


def _joined(series: Series, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Return a warning if each image has its own series; refuse such images unless each has its own position."""
    if not series.joined:
        return ()
    count = len(series.images)
    each = f"each of the {count} images has a Series Instance UID of its own"
    if len(groups) < count:
        message = f"{each}, and they lie at only {len(groups)} positions: nothing says which belong together"
        raise ImageConversionError(message, hint=_CHOOSE_OTHER)
    return (f"{each}; they are joined, for the archive keeps them as one scan and they make one regular stack",)


def _refuse_a_part(series: Series, frames: Sequence[Frame]) -> None:
    """Refuse a series that makes a regular stack with images of another series in the same scan.

    It may be only a part of the volume.
    """
    first = series.images[0]
    beside = [
        image
        for image in series.others
        if (image.study_uid, image.sop_class, image.columns, image.rows, image.samples)
        == (first.study_uid, first.sop_class, first.columns, first.rows, first.samples)
    ]
    together = [*frames, *(frame for image in beside for frame in image.frames)]
    if not beside or any(frame.plane is None for frame in together):
        return
    try:
        groups = regular_stack(together).groups
    except ImageConversionError:
        return
    if len(groups) == len(together):
        raise ImageConversionError(
            f"only {len(frames)} of the {len(together)} images that make one regular stack are of the series that XNAT "
            f"lists for the scan, {first.series_uid}; of another series: {name_files(image.path for image in beside)}",
            hint="give the images one Series Instance UID, or move those of the other series to a scan of their own",
        )


def _plan_unplaced(
    images: Sequence[ImageHeader], headers: Mapping[Path, ImageHeader], notes: tuple[str, ...]
) -> VolumePlan:
    """Return the plan for images without a position (secondary captures, ultrasound), stacked as ITK does it."""
    first = images[0]
    if first.sop_class in _CROSS_SECTIONS:
        count = sum(len(image.frames) for image in images)
        message = f"none of the {count} {first.modality} images says where it lies (Image Position, Image Orientation)"
        raise ImageConversionError(f"{message}: {name_files(headers)}", hint=_CHOOSE_OTHER)
    if len(images) > 1:
        images = _by_instance_number(images)
    frames = tuple(frame for image in images for frame in image.frames)
    affine = file_geometry(images[0])
    if len(images) > 1:
        affine[:3, 2] /= np.linalg.norm(affine[:3, 2])
    if len(frames) > 1:
        order = "Instance Number" if len(images) > 1 else "frame"
        notes = (*notes, f"the headers do not say where each image lies: stacked by {order}, as ITK does")
    return VolumePlan(frames, len(frames), 1, affine, headers, notes)


def _by_instance_number(images: Sequence[ImageHeader]) -> list[ImageHeader]:
    several = [image.path for image in images if len(image.frames) > 1]
    if several:
        message = f"{len(images)} files without positions, with several frames each: {name_files(several)}"
        raise ImageConversionError(message, hint=_CHOOSE_OTHER)
    ordered = sorted(images, key=lambda image: image.frames[0].order)
    numbers = {image.frames[0].order for image in images}
    if len(numbers) < len(images):
        message = f"{len(images)} images without positions, and only {len(numbers)} different Instance Numbers"
        raise ImageConversionError(message, hint=_CHOOSE_OTHER)
    return ordered


def _runs_backwards(groups: Sequence[Sequence[int]], images: Sequence[ImageHeader]) -> bool:
    """Return whether the frames of multi-frame files are stored in descending order, which GDCM keeps."""
    first_seen = [min(group) for group in groups]
    multi_frame = any(len(image.frames) > 1 and not image.tiles for image in images)
    return multi_frame and len(groups) > 1 and first_seen == sorted(first_seen, reverse=True)


def _affine(stack: Sequence[Frame], headers: Mapping[Path, ImageHeader], *, is_tilted: bool) -> Floats:
    """Return the affine (LPS) of a stack in slice order: as ITK reads it from the first file, else by its formula."""
    first, last = plane_of(stack[0]), plane_of(stack[-1])
    end = np.array(last.position)
    if is_tilted:
        end = first.position + first.normal * np.dot(np.subtract(end, first.position), first.normal)
    computed = affine_of_planes(first, end.tolist(), len(stack))
    if len(headers[stack[0].path].frames) > 1:
        return computed
    try:
        reference = file_geometry(headers[stack[0].path])
    except ImageConversionError:
        return computed
    step = np.linalg.norm(computed[:3, 2])
    spacing = np.linalg.norm(reference[:3, 2])
    # GDCM ignores the position in a few kinds of objects that may have one.
    moved = np.abs(reference[:3, 3] - first.position).max() > 1e-3
    turned = np.abs(reference[:3, 2] / spacing - computed[:3, 2] / step).max() > ORIENTATION_TOLERANCE
    if moved or turned:
        return computed
    if len(stack) > 1:
        reference[:3, 2] *= step / spacing
    return reference


def sources_of(instance_uids: Sequence[str], frame_numbers: Sequence[int], slices: int) -> dict[tuple[str, int], int]:
    """Return the slice that each image became, by SOP Instance UID and frame number.

    Parameters
    ----------
    instance_uids : sequence of str
        SOP Instance UID of each slice, volume after volume.
    frame_numbers : sequence of int
        Number of each slice's frame in its file, from 1. A tile of a mosaic has the number 0 and is left out, because
        an object that refers to the whole picture means another place.
    slices : int
        How many slices a volume has.
    """
    images = enumerate(zip(instance_uids, frame_numbers, strict=True))
    return {(uid, frame): place % slices for place, (uid, frame) in images if frame}


def read_sources(folder: Path, series_uid: str | None) -> Sources:
    """Return the slice that each image of the DICOM series in a folder became.

    Parameters
    ----------
    folder : Path
        The DICOM files.
    series_uid : str or None
        Series Instance UID, needed only if there are images of several series.

    Raises
    ------
    ImageError
        If the files do not make one volume.
    """
    plan = plan_volume(read_series(folder, series_uid, one_scan=True), tilted=True)
    uids = [plan.headers[frame.path].sop_instance_uid for frame in plan.frames]
    numbers = [0 if plan.headers[frame.path].tiles else frame.index + 1 for frame in plan.frames]
    return sources_of(uids, numbers, plan.slices)


def encode_sources(sources: Sources) -> bytes:
    """Return sources as JSON, for `decode_sources`."""
    return json.dumps([[uid, frame, place] for (uid, frame), place in sources.items()]).encode()


def decode_sources(content: bytes) -> Sources:
    """Return sources from JSON that `encode_sources` wrote.

    Raises
    ------
    ValueError
        If the content is not such JSON.
    """
    return {(str(uid), int(frame)): int(place) for uid, frame, place in json.loads(content)}
