"""Finding a regular stack: parallel, evenly spaced slices that lie straight above each other or are shifted evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monailabel_xnat.convert.dicom.frames import Frame
from monailabel_xnat.convert.dicom.series import name_files
from monailabel_xnat.convert.geometry import ORIENTATION_TOLERANCE, Floats, Plane, distances_along, group_by_distance
from monailabel_xnat.errors import ImageConversionError

SPACING_TOLERANCE = 1e-3
"""Largest relative difference of the pixel spacing within one volume."""

SLICE_POSITION_TOLERANCE = 0.01
"""How far a slice may lie from its place on a regular grid, as a share of the slice spacing."""

SLICE_ROUNDING_MM = 0.051
"""How far any slice may lie from its place on a regular grid, in mm: half of a tenth of a millimetre, and a little more
for the rounding of the sum."""

SLICE_ROUNDING_SHARE = 0.1
"""`SLICE_ROUNDING_MM` is allowed only up to this share of the slice spacing (it matters for small-animal scanners)."""

SEEN_ROUNDING_SHARE = 0.2
"""Positions that are rounded to one decimal or more may be off by their rounding, up to this share of the slice
spacing. A missing slice shifts the others by at least a quarter of the spacing."""

LATERAL_TOLERANCE = 0.2
"""How far a slice may lie beside the normal through the first slice, as a share of the smaller pixel spacing."""

LARGEST_LATERAL = 0.5
"""The same limit for positions that are coarsely rounded: half a pixel. It is then still clear which voxel is meant."""

SAME_POSITION_SHARE = 0.1
"""Slices that are nearer to each other than this share of the pixel spacing, and than 0.01 mm, have one position."""

_CHOOSE_OTHER = "choose another scan, or convert this one by hand and attach it as resource NIFTI"
_STACK = "set gantry_tilt to stack to have the slices stacked straight, or choose another scan"
_TILT = "gantry tilt"


@dataclass(frozen=True, eq=False)
class Stack:
    """A regular stack of frames.

    Parameters
    ----------
    groups : list of list of int
        Indices of the frames at each position; the positions ascend along the normal.
    shear : ndarray (3,) or None
        How much further sideways (LPS, mm) each position lies than the position before; None if all positions lie
        straight above each other.
    warnings : tuple of str
        What is doubtful about the stack.
    """

    groups: list[list[int]]
    shear: Floats | None
    warnings: tuple[str, ...]


def regular_stack(frames: Sequence[Frame], *, tilted: bool = False) -> Stack:
    """Return the regular stack that frames make.

    Parameters
    ----------
    frames : sequence of Frame
        The frames. All must have a plane, and there may be several at each position.
    tilted : bool
        Whether slices may be shifted sideways evenly, as by a tilted gantry.

    Raises
    ------
    ImageConversionError
        If they do not make a regular stack; the message names files and numbers.
    """
    planes = [plane_of(frame) for frame in frames]
    _refuse_mixed_planes(frames, planes)
    positions = np.array([plane.position for plane in planes])
    distances = distances_along(planes[0].normal, positions)
    groups = group_by_distance(distances, same_position_tolerance(planes[0].spacing))
    shear = _shear(frames, positions, distances, groups, tilted)
    if shear is None:
        return Stack(groups, None, ())
    depth = float(distances[groups[-1][0]] - distances[groups[0][0]])
    shift = float(np.linalg.norm(shear)) * (len(groups) - 1)
    warning = (
        f"gantry tilt of {np.degrees(np.arctan2(shift, depth)):.1f} degrees: the slices are stacked straight, so that "
        f"they lie up to {shift:.1f} mm beside their place in the patient"
    )
    return Stack(groups, shear, (warning,))


def plane_of(frame: Frame) -> Plane:
    """Return the plane of a frame that has one."""
    if frame.plane is None:
        raise ValueError(f"{frame.path.name} has no plane")
    return frame.plane


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


def _shear(
    frames: Sequence[Frame], positions: Floats, distances: Floats, groups: Sequence[Sequence[int]], tilted: bool
) -> Floats | None:
    """Refuse slices with gaps, uneven spacing or sideways shifts; return the shift of a tilted gantry, if allowed."""
    heads = [group[0] for group in groups]
    rounding, plane = rounding_of(positions), plane_of(frames[0])
    problems = []
    if len(heads) > 2:
        along = float(np.abs(plane.normal) @ rounding)
        problems += _gaps([frames[head] for head in heads], distances[heads], along)
    first, last = heads[0], heads[-1]
    lateral = positions - positions[first] - np.outer(distances - distances[first], plane.normal)
    shift = np.linalg.norm(lateral, axis=1)
    # A shift is the difference of two positions, and each of them is rounded in three coordinates.
    sideways = min(2 * float(np.linalg.norm(rounding)), LARGEST_LATERAL * min(plane.spacing))
    tolerance = max(LATERAL_TOLERANCE * min(plane.spacing), sideways)
    shear: Floats | None = None
    if shift.max() > tolerance:
        depth = float(distances[last] - distances[first])
        even = np.outer((distances - distances[first]) / depth, lateral[last]) if depth > 0 else np.zeros_like(lateral)
        if tilted and np.linalg.norm(lateral - even, axis=1).max() <= tolerance:
            shear = np.asarray(lateral[last] / (len(heads) - 1))
        else:
            problems.append(_sideways(shift, depth, last))
    if problems:
        # The setting gantry_tilt does not help against other problems.
        is_tilt = problems[0].startswith(_TILT) and not tilted
        raise ImageConversionError("; ".join(problems), hint=_STACK if is_tilt else _CHOOSE_OTHER)
    return shear


def _gaps(frames: Sequence[Frame], distances: Floats, rounding: float) -> list[str]:
    count = len(distances)
    step = (distances[-1] - distances[0]) / (count - 1)
    if off_the_line(distances) <= slice_position_tolerance(step, rounding):
        return []
    gaps = np.diff(distances)
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > 1.5 * usual)
    # If all other steps are equal, a gap of a whole number of steps means missing slices. Otherwise it is irregular.
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


def _sideways(shift: Floats, depth: float, last: int) -> str:
    most = float(shift.max())
    if depth > 0 and shift[last] > 0.9 * most:
        angle = float(np.degrees(np.arctan2(shift[last], depth)))
        return f"{_TILT}: the slices are sheared by {angle:.1f} degrees, {most:.1f} mm over {depth:.1f} mm"
    return f"the slices do not lie above each other: shifted sideways by up to {most:.1f} mm"


def _cosines(plane: Plane) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in plane.orientation) + ")"


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in spacing) + " mm"


def slice_position_tolerance(spacing: float, rounding: float = 0.0) -> float:
    """Return how far (mm) a slice may lie from its place on a grid of this slice spacing.

    Parameters
    ----------
    spacing : float
        Slice spacing, mm.
    rounding : float
        By how much (mm) positions may have been rounded along the normal; see `rounding_of`.
    """
    always = min(SLICE_ROUNDING_MM, SLICE_ROUNDING_SHARE * spacing)
    return max(SLICE_POSITION_TOLERANCE * spacing, always, min(rounding, SEEN_ROUNDING_SHARE * spacing))


def rounding_of(positions: Floats) -> Floats:
    """Return by how much (mm) each of the coordinates x, y and z may have been rounded, judged by their decimals.

    It is 0 for a coordinate of whole millimetres. These count as exact, because very many series have them. Numbers
    that a program kept with 32 bits have more decimals than their rounding; these do not count.
    """
    return np.array([_rounding(positions[:, axis]) for axis in range(3)])


def _rounding(coordinate: Floats) -> float:
    noise = max(1e-7, float(np.finfo(np.float32).eps) * float(np.abs(coordinate).max()))
    for decimals in range(6):
        if np.abs(np.round(coordinate, decimals) - coordinate).max() < noise:
            return 0.501 * 10.0**-decimals if decimals else 0.0
    return 0.0


def off_the_line(distances: Floats) -> float:
    """Return the largest distance (mm) of a slice from its place on the regular grid that fits all slices best."""
    numbers = np.arange(len(distances))

    def width(step: float) -> float:
        left = distances - step * numbers
        return float(left.max() - left.min())

    # The width is a convex function of the step, so a ternary search finds its minimum.
    gaps = np.diff(distances)
    low, high = float(gaps.min()), float(gaps.max())
    for _ in range(60):
        third = (high - low) / 3.0
        if width(low + third) < width(high - third):
            high -= third
        else:
            low += third
    return width((low + high) / 2.0) / 2.0


def same_position_tolerance(spacing: tuple[float, float]) -> float:
    """Return how near (mm) two slices must be to count as one position."""
    return min(0.01, SAME_POSITION_SHARE * min(spacing))


def orientation_name(orientation: Sequence[float]) -> str:
    """Return the name of a plane: axial, sagittal or coronal, with "oblique" before it if it is off by over 5 degrees.

    Parameters
    ----------
    orientation : sequence of float
        Direction cosines of a row, then of a column, LPS.
    """
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    name = ("sagittal", "coronal", "axial")[int(np.argmax(normal))]
    return name if normal.max() > np.cos(np.radians(5.0)) else f"oblique {name}"
