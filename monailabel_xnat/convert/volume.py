"""The plan of a volume: which frames, in which order, on which grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monailabel_xnat.convert.decoding import file_geometry
from monailabel_xnat.convert.frames import Frame
from monailabel_xnat.convert.geometry import (
    LARGEST_LATERAL,
    LATERAL_TOLERANCE,
    ORIENTATION_TOLERANCE,
    SPACING_TOLERANCE,
    Floats,
    Plane,
    affine_of_planes,
    distances_along,
    group_by_distance,
    off_the_line,
    orientation_name,
    rounding_of,
    same_position_tolerance,
    slice_position_tolerance,
)
from monailabel_xnat.convert.headers import ImageHeader
from monailabel_xnat.convert.repeats import drop_identical_files, order_repeats
from monailabel_xnat.convert.series import Series, name_files
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
"""Images that must say where they lie and how large their pixels are (DICOM PS3.3 A.3, A.4, A.18, A.21, A.36, A.38)."""

_CHOOSE_OTHER = "choose another scan, or convert this one by hand and attach it as resource NIFTI"


@dataclass(frozen=True)
class VolumePlan:
    """How to make a volume of a series.

    Parameters
    ----------
    frames : tuple of Frame
        Slice after slice, volume after volume.
    slices, volumes : int
        Their number is ``slices * volumes``.
    affine : ndarray (4, 4)
        Voxel index to LPS, mm.
    headers : mapping of Path to ImageHeader
        The headers of the files.
    notes : tuple of str
        What is worth knowing.
    warnings : tuple of str
        Those of the notes that make the volume doubtful.
    """

    frames: tuple[Frame, ...]
    slices: int
    volumes: int
    affine: Floats
    headers: Mapping[Path, ImageHeader]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def plan_volume(series: Series) -> VolumePlan:
    """Find the one volume that a series is.

    Raises
    ------
    ImageConversionError
        If it is none: orientations differ, slices are missing, unevenly spaced, sheared or doubled.
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
    planes = [_plane(frame) for frame in frames]
    notes = (*series.notes, *dropped, *_unmeasured(frames, headers))
    groups = _positions(frames, planes)
    warnings = _joined(series, groups)
    _refuse_a_part(series, frames)
    if _runs_backwards(groups, images):
        groups.reverse()
    ordered, repeats = order_repeats([[frames[index] for index in group] for group in groups], headers)
    volumes = len(ordered) // len(groups)
    return VolumePlan(
        frames=tuple(ordered),
        slices=len(groups),
        volumes=volumes,
        affine=_affine(ordered[: len(groups)], headers),
        headers=headers,
        notes=(*notes, *repeats, *warnings),
        warnings=warnings,
    )


def _positions(frames: Sequence[Frame], planes: Sequence[Plane]) -> list[list[int]]:
    """Return the indices of the frames at each position, in ascending order; refuse what is not one regular stack."""
    _refuse_mixed_planes(frames, planes)
    positions = np.array([plane.position for plane in planes])
    distances = distances_along(planes[0].normal, positions)
    groups = group_by_distance(distances, same_position_tolerance(planes[0].spacing))
    _refuse_uneven(frames, positions, distances, groups, planes[0])
    return groups


def _unmeasured(frames: Sequence[Frame], headers: Mapping[Path, ImageHeader]) -> list[str]:
    """Note the frames whose header gives no size of pixels; refuse those that must give it."""
    missing = [frame.path for frame in frames if not frame.is_measured]
    cross_sections = [path for path in missing if headers[path].sop_class in _CROSS_SECTIONS]
    if cross_sections:
        raise ImageConversionError(
            f"no Pixel Spacing above 0 in {len(cross_sections)} of {len(frames)} images: {name_files(cross_sections)}",
            hint=_CHOOSE_OTHER,
        )
    return [f"no Pixel Spacing in {len(missing)} of {len(frames)} images, which ITK takes for 1 mm"] if missing else []


def _joined(series: Series, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Warn of images that have a series each; refuse them unless they are one stack of slices."""
    if not series.joined:
        return ()
    count = len(series.images)
    each = f"each of the {count} images has a Series Instance UID of its own"
    if len(groups) < count:
        message = f"{each}, and they lie at only {len(groups)} positions: nothing says which belong together"
        raise ImageConversionError(message, hint=_CHOOSE_OTHER)
    return (f"{each}; they are joined, for the archive keeps them as one scan and they make one regular stack",)


def _refuse_a_part(series: Series, frames: Sequence[Frame]) -> None:
    """Refuse a series that images of another series in the same scan continue: it may be a part of the volume."""
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
        groups = _positions(together, [_plane(frame) for frame in together])
    except ImageConversionError:
        return
    if len(groups) == len(together):
        raise ImageConversionError(
            f"only {len(frames)} of the {len(together)} images that make one regular stack are of the series that XNAT "
            f"lists for the scan, {first.series_uid}; of another series: {name_files(image.path for image in beside)}",
            hint="give the images one Series Instance UID, or move those of the other series to a scan of their own",
        )


def _plane(frame: Frame) -> Plane:
    if frame.plane is None:
        raise ValueError(f"{frame.path.name} has no plane")
    return frame.plane


def _plan_unplaced(
    images: Sequence[ImageHeader], headers: Mapping[Path, ImageHeader], notes: tuple[str, ...]
) -> VolumePlan:
    """Plan images whose headers do not say where they lie (secondary captures, ultrasound) as ITK stacks them."""
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
    """Tell whether the frames of multi-frame files are stored against the normal: GDCM keeps their order."""
    first_seen = [min(group) for group in groups]
    multi_frame = any(len(image.frames) > 1 and not image.tiles for image in images)
    return multi_frame and len(groups) > 1 and first_seen == sorted(first_seen, reverse=True)


def _refuse_mixed_planes(frames: Sequence[Frame], planes: Sequence[Plane]) -> None:
    """Refuse frames that are not parallel, or whose pixels differ in size."""
    orientations = np.array([plane.orientation for plane in planes])
    clusters = []
    left = np.arange(len(frames))
    while len(left):
        parallel = np.abs(orientations[left] - orientations[left[0]]).max(axis=1) <= ORIENTATION_TOLERANCE
        clusters.append(left[parallel])
        left = left[~parallel]
    if len(clusters) > 1:
        parts = [
            f"{len(members)} x {orientation_name(planes[members[0]].orientation)} {_cosines(planes[members[0]])} "
            f"in {name_files(frames[at].path for at in members)}"
            for members in clusters
        ]
        message = f"{len(frames)} images in {len(clusters)} orientations, as in a localizer: {'; '.join(parts)}"
        raise ImageConversionError(message, hint=_CHOOSE_OTHER)
    spacings = np.array([plane.spacing for plane in planes])
    differing = np.abs(spacings - spacings[0]).max(axis=1) > SPACING_TOLERANCE * spacings[0].min()
    if differing.any():
        other = int(np.argmax(differing))
        raise ImageConversionError(
            f"the pixel spacing differs within the series: {_millimetres(planes[0].spacing)} in "
            f"{frames[0].path.name}, {_millimetres(planes[other].spacing)} in {frames[other].path.name}",
            hint=_CHOOSE_OTHER,
        )


def _refuse_uneven(
    frames: Sequence[Frame], positions: Floats, distances: Floats, groups: Sequence[Sequence[int]], plane: Plane
) -> None:
    """Refuse slices with gaps, with uneven spacing, or shifted sideways (gantry tilt)."""
    heads = [group[0] for group in groups]
    rounding = rounding_of(positions)
    problems = []
    if len(heads) > 2:
        along = rounding * float(np.abs(plane.normal).sum())
        problems += _gaps([frames[head] for head in heads], distances[heads], along)
    first, last = heads[0], heads[-1]
    lateral = positions - positions[first] - np.outer(distances - distances[first], plane.normal)
    shift = np.linalg.norm(lateral, axis=1)
    # Both positions are rounded, each in three coordinates.
    sideways = min(2 * np.sqrt(3) * rounding, LARGEST_LATERAL * min(plane.spacing))
    if shift.max() > max(LATERAL_TOLERANCE * min(plane.spacing), sideways):
        problems.append(_shear(shift, float(distances[last] - distances[first]), last))
    if problems:
        raise ImageConversionError("; ".join(problems), hint=_CHOOSE_OTHER)


def _gaps(frames: Sequence[Frame], distances: Floats, rounding: float) -> list[str]:
    count = len(distances)
    step = (distances[-1] - distances[0]) / (count - 1)
    if off_the_line(distances) <= slice_position_tolerance(step, rounding):
        return []
    gaps = np.diff(distances)
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > 1.5 * usual)
    # A gap of a whole number of steps among equal steps is a missing slice; anything else is irregular.
    others = np.delete(gaps, wide)
    if len(wide) and np.abs(others - usual).max() <= 2 * slice_position_tolerance(usual, 2 * rounding):
        missing = int(sum(round(gap / usual) - 1 for gap in gaps[wide]))
        places = ", ".join(
            f"{gaps[at]:.3f} mm between {distances[at]:.3f} ({frames[at].path.name}) "
            f"and {distances[at + 1]:.3f} ({frames[at + 1].path.name})"
            for at in wide[:3]
        )
        return [f"about {missing} of {count + missing} slices missing: spacing {usual:.3f} mm, but {places}"]
    low, high = int(np.argmin(gaps)), int(np.argmax(gaps))
    return [f"the slice spacing of {count} slices varies from {_gap(frames, gaps, low)} to {_gap(frames, gaps, high)}"]


def _gap(frames: Sequence[Frame], gaps: Floats, at: int) -> str:
    return f"{gaps[at]:.3f} mm (after {frames[at].path.name})"


def _shear(shift: Floats, depth: float, last: int) -> str:
    most = float(shift.max())
    if depth > 0 and shift[last] > 0.9 * most:
        angle = float(np.degrees(np.arctan2(shift[last], depth)))
        return f"gantry tilt: the slices are sheared by {angle:.1f} degrees, {most:.1f} mm over {depth:.1f} mm"
    return f"the slices do not lie above each other: shifted sideways by up to {most:.1f} mm"


def _affine(stack: Sequence[Frame], headers: Mapping[Path, ImageHeader]) -> Floats:
    """Give the affine (LPS) of a stack in slice order: ITK's own for plain files, else by the same formula."""
    first, last = _plane(stack[0]), _plane(stack[-1])
    computed = affine_of_planes(first, last.position, len(stack))
    if len(headers[stack[0].path].frames) > 1:
        return computed
    try:
        reference = file_geometry(headers[stack[0].path])
    except ImageConversionError:
        return computed
    step = np.linalg.norm(computed[:3, 2])
    spacing = np.linalg.norm(reference[:3, 2])
    # GDCM ignores the position in a few kinds of object that may well have one.
    moved = np.abs(reference[:3, 3] - first.position).max() > 1e-3
    turned = np.abs(reference[:3, 2] / spacing - computed[:3, 2] / step).max() > ORIENTATION_TOLERANCE
    if moved or turned:
        return computed
    if len(stack) > 1:
        reference[:3, 2] *= step / spacing
    return reference


def _cosines(plane: Plane) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in plane.orientation) + ")"


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in spacing) + " mm"
