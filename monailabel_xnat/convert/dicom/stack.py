"""One regular stack: slices that are parallel, evenly spaced, and above each other or tilted evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monailabel_xnat.convert.dicom.frames import Frame
from monailabel_xnat.convert.dicom.series import name_files
from monailabel_xnat.convert.geometry import (
    LARGEST_LATERAL,
    LATERAL_TOLERANCE,
    ORIENTATION_TOLERANCE,
    SPACING_TOLERANCE,
    Floats,
    Plane,
    distances_along,
    group_by_distance,
    off_the_line,
    orientation_name,
    rounding_of,
    same_position_tolerance,
    slice_position_tolerance,
)
from monailabel_xnat.errors import ImageConversionError

_CHOOSE_OTHER = "choose another scan, or convert this one by hand and attach it as resource NIFTI"
_STACK = "set gantry_tilt to stack to have the slices stacked straight, or choose another scan"
_TILT = "gantry tilt"


@dataclass(frozen=True, eq=False)
class Stack:
    """A regular stack.

    Parameters
    ----------
    groups : list of list of int
        The frames at each position, in ascending order.
    shear : ndarray (3,) or None
        By how much (LPS, mm) each position lies further sideways than the one before; None if they lie above each
        other.
    warnings : tuple of str
        What is doubtful about it.
    """

    groups: list[list[int]]
    shear: Floats | None
    warnings: tuple[str, ...]


def regular_stack(frames: Sequence[Frame], *, tilted: bool = False) -> Stack:
    """Find the positions of frames, all of which must have a plane.

    Parameters
    ----------
    frames : sequence of Frame
        Any number at each position.
    tilted : bool
        Whether slices may be shifted sideways evenly, as by a tilted gantry.

    Raises
    ------
    ImageConversionError
        If they are no regular stack; the message names files and numbers.
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
    """Refuse slices with gaps, with uneven spacing, or shifted sideways; return by how much a tilted gantry shifts."""
    heads = [group[0] for group in groups]
    rounding, plane = rounding_of(positions), plane_of(frames[0])
    problems = []
    if len(heads) > 2:
        along = rounding * float(np.abs(plane.normal).sum())
        problems += _gaps([frames[head] for head in heads], distances[heads], along)
    first, last = heads[0], heads[-1]
    lateral = positions - positions[first] - np.outer(distances - distances[first], plane.normal)
    shift = np.linalg.norm(lateral, axis=1)
    # Both positions are rounded, each in three coordinates.
    sideways = min(2 * 3**0.5 * rounding, LARGEST_LATERAL * min(plane.spacing))
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
        # Of other problems stacking does not help.
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
