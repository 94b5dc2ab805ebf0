"""The frames of a DICOM image object: where each lies, how its values are scaled, and to which volume it may belong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.elements import Elements
from monailabel_xnat.convert.geometry import FARTHEST, VOXEL_SIZES, Plane, cross, has_possible_sizes

Trait = float | str | tuple[float, ...]

TRAITS = (
    "Dimension Index Values",
    "Temporal Position Index",
    "Temporal Position Identifier",
    "Trigger Time",
    "Diffusion b-value",
    "Echo Time",
    "Inversion Time",
    "Acquisition Number",
    "Acquisition Time",
    "Image Type",
    "Diffusion Gradient Orientation",
)
"""Attributes that may tell the volumes of a 4-D series apart, alone or together. They are tried in this order. If none
of them does, the Instance Number is used."""

TIME_TRAITS = (
    "Dimension Index Values",
    "Temporal Position Index",
    "Temporal Position Identifier",
    "Trigger Time",
    "Acquisition Time",
)
"""The traits by which several images that all lie at one position may be a series over time (cardiac cine, one dynamic
slice)."""

# The elements that hold a trait in a classic (one file, one frame) object, and how they are read.
_DECIMAL_TRAITS = {
    "Temporal Position Identifier": 0x00200100,
    "Trigger Time": 0x00181060,
    "Echo Time": 0x00180081,
    "Inversion Time": 0x00180082,
    "Acquisition Number": 0x00200012,
}
_DIFFUSION_B_VALUE = 0x00189087
_GRADIENT_ORIENTATION = 0x00189089
_GRADIENT_DIRECTION = 0x00189076
_ACQUISITION_TIME = 0x00080032
_IMAGE_TYPE = 0x00080008

_FRAMES = 0x00280008
_POSITION = 0x00200032
_ORIENTATION = 0x00200037
_PIXEL_SPACING = 0x00280030
_THICKNESS = 0x00180050
_SLICE_SPACING = 0x00180088
_INTERCEPT = 0x00281052
_SLOPE = 0x00281053
_GRID_FRAME_OFFSETS = 0x3004000C
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230

# Functional groups (DICOM PS3.3 C.7.6.16.2).
_PIXEL_MEASURES = 0x00289110
_PLANE_POSITION = 0x00209113
_PLANE_ORIENTATION = 0x00209116
_VALUE_TRANSFORMATION = 0x00289145
_FRAME_CONTENT = 0x00209111
_DIFFUSION = 0x00189117
_ECHO = 0x00189114
_DIMENSION_INDEX_VALUES = 0x00209157
_TEMPORAL_POSITION_INDEX = 0x00209128
_EFFECTIVE_ECHO_TIME = 0x00189082

MOST_FRAMES = 32767
"""How many frames a file without functional groups may have. They are one side of the volume, and NIfTI-1 cannot hold a
longer side."""

_COSINE_ERROR = 0.01
"""How far the length of a direction may be from 1, and the product of the two directions from 0. Rounding causes much
smaller differences."""

FRAME_TAGS = (
    *_DECIMAL_TRAITS.values(),
    _DIFFUSION_B_VALUE,
    _GRADIENT_ORIENTATION,
    _ACQUISITION_TIME,
    _IMAGE_TYPE,
    _POSITION,
    _ORIENTATION,
    _PIXEL_SPACING,
    _THICKNESS,
    _SLICE_SPACING,
    _INTERCEPT,
    _SLOPE,
    _GRID_FRAME_OFFSETS,
    _SHARED_GROUPS,
    _FRAME_GROUPS,
)
"""The elements that this module reads from the top level of a dataset."""


@dataclass(frozen=True)
class Frame:
    """One two-dimensional image of a file.

    Parameters
    ----------
    path : Path
        The file.
    index : int
        Index of the frame in the file, from 0.
    order : float
        Instance Number of the file. It orders frames that no trait tells apart.
    plane : Plane or None
        Where the frame lies; None if the header does not say.
    slope, intercept : float
        Rescale Slope and Intercept of this frame.
    is_measured : bool
        Whether the header gives the size of the pixels (Pixel Spacing).
    traits : mapping of str to value
        Attributes that may tell its volume from others in the series, by the names in `TRAITS`.
    """

    path: Path
    index: int
    order: float
    plane: Plane | None
    slope: float = 1.0
    intercept: float = 0.0
    is_measured: bool = True
    traits: Mapping[str, Trait] = field(default_factory=dict)


def frame_count(dataset: Elements) -> int:
    """Return the Number of Frames of an object, 1 if it does not say.

    Raises
    ------
    ElementError
        If it is less than 1.
    """
    count = elements.decimal(dataset, _FRAMES)
    # Some programs write 0 for a single image.
    if count and count < 1:
        raise elements.ElementError(f"Number of Frames is {count:g}, but at least 1 is expected")
    return int(count or 1)


def read_frames(path: Path, dataset: Elements, count: int, order: float) -> tuple[Frame, ...]:
    """Read the frames of an image object from its header.

    Parameters
    ----------
    path : Path
        The file that the header was read from.
    dataset : mapping of int to bytes, or Dataset
        Its header.
    count : int
        Number of Frames. The caller should have found the pixels of that many frames, because each takes memory here.
    order : float
        Instance Number.

    Returns
    -------
    tuple of Frame
        The frames in the order of the pixel data.

    Raises
    ------
    ElementError
        If a value in the header is not a number or makes no sense, or the number of frames is contradictory.
    """
    groups = elements.items(dataset, _FRAME_GROUPS)
    if groups:
        if len(groups) != count:
            raise elements.ElementError(f"{count} frames, but functional groups of {len(groups)}")
        return _enhanced_frames(path, dataset, groups, order)
    if count > MOST_FRAMES:
        raise elements.ElementError(f"Number of Frames is {count}, but at most {MOST_FRAMES} are expected")
    offsets = elements.decimals(dataset, _GRID_FRAME_OFFSETS) if count > 1 else None
    slope, intercept = _scaling(dataset)
    if count > 1 and (offsets is None or len(offsets) != count):
        return tuple(Frame(path, index, order, None, slope, intercept) for index in range(count))
    plane, is_measured = _plane(dataset, dataset, dataset), _spacing(dataset) is not None
    if offsets is None:
        return (Frame(path, 0, order, plane, slope, intercept, is_measured, _classic_traits(dataset)),)
    # Offsets are distances from the first frame. If the first offset is not 0, they are z coordinates in the patient
    # (DICOM PS3.3 C.8.8.3.2).
    steps = [offset - offsets[0] for offset in offsets]
    return tuple(
        Frame(path, n, order, _shifted(plane, step), slope, intercept, is_measured) for n, step in enumerate(steps)
    )


def _enhanced_frames(path: Path, dataset: Elements, groups: list[Dataset], order: float) -> tuple[Frame, ...]:
    shared = (elements.items(dataset, _SHARED_GROUPS) or [Dataset()])[0]

    def macro(frame: Dataset, tag: int) -> Dataset:
        found = elements.items(frame, tag) or elements.items(shared, tag)
        return found[0] if found else Dataset()

    frames = []
    for index, group in enumerate(groups):
        measures = macro(group, _PIXEL_MEASURES)
        plane = _plane(macro(group, _PLANE_POSITION), macro(group, _PLANE_ORIENTATION), measures)
        # Some programs write the rescale outside the groups. GDCM and pydicom apply it, too.
        slope, intercept = _scaling(macro(group, _VALUE_TRANSFORMATION) or dataset)
        traits = _enhanced_traits(macro(group, _FRAME_CONTENT), macro(group, _DIFFUSION), macro(group, _ECHO))
        frames.append(Frame(path, index, order, plane, slope, intercept, _spacing(measures) is not None, traits))
    return tuple(frames)


def _enhanced_traits(content: Dataset, diffusion: Dataset, echo: Dataset) -> dict[str, Trait]:
    traits: dict[str, Trait | None] = {
        "Dimension Index Values": elements.integers(content, _DIMENSION_INDEX_VALUES, "I") or None,
        "Temporal Position Index": next(iter(elements.integers(content, _TEMPORAL_POSITION_INDEX, "I")), None),
        "Diffusion b-value": elements.double(diffusion, _DIFFUSION_B_VALUE),
        "Diffusion Gradient Orientation": _direction(diffusion),
        "Echo Time": elements.double(echo, _EFFECTIVE_ECHO_TIME),
    }
    return {name: value for name, value in traits.items() if value is not None}


def _direction(diffusion: Dataset) -> Trait | None:
    """Return the gradient direction of a functional group; empty for an image without diffusion weighting."""
    nested = elements.items(diffusion, _GRADIENT_DIRECTION)
    if nested:
        return elements.doubles(nested[0], _GRADIENT_ORIENTATION)
    return () if elements.double(diffusion, _DIFFUSION_B_VALUE) is not None else None


def _classic_traits(dataset: Elements) -> dict[str, Trait]:
    traits: dict[str, Trait | None] = {name: elements.decimal(dataset, tag) for name, tag in _DECIMAL_TRAITS.items()}
    traits["Diffusion b-value"] = elements.double(dataset, _DIFFUSION_B_VALUE)
    if traits["Diffusion b-value"] is not None:
        # An image without diffusion weighting has no direction; the value is empty then.
        traits["Diffusion Gradient Orientation"] = elements.doubles(dataset, _GRADIENT_ORIENTATION)
    traits["Acquisition Time"] = elements.text(dataset, _ACQUISITION_TIME) or None
    traits["Image Type"] = elements.text(dataset, _IMAGE_TYPE) or None
    return {name: value for name, value in traits.items() if value is not None}


def _plane(position: Elements, orientation: Elements, measures: Elements) -> Plane | None:
    """Return the plane of a frame; None if the position or the orientation is missing. Wrong numbers are an error."""
    origin = elements.decimals(position, _POSITION, 3)
    cosines = elements.decimals(orientation, _ORIENTATION, 6)
    if origin is None or cosines is None:
        return None
    if max(map(abs, cross(cosines[:3], cosines[3:]))) < 1e-3:
        raise elements.ElementError(f"Image Orientation (Patient) spans no plane: {cosines}")
    lengths = [math.hypot(*cosines[:3]), math.hypot(*cosines[3:])]
    slant = sum(one * other for one, other in zip(cosines[:3], cosines[3:], strict=True))
    if max(abs(length - 1.0) for length in lengths) > _COSINE_ERROR or abs(slant) > _COSINE_ERROR:
        raise elements.ElementError(f"Image Orientation (Patient) is not two unit vectors at right angles: {cosines}")
    spacing = _spacing(measures) or (1.0, 1.0)
    thickness = elements.decimal(measures, _SLICE_SPACING) or elements.decimal(measures, _THICKNESS) or 1.0
    _refuse_impossible("Spacing Between Slices or Slice Thickness", (abs(thickness),))
    if max(map(abs, origin)) > FARTHEST:
        raise elements.ElementError(f"Image Position (Patient) is {origin} mm; at most {FARTHEST:g} mm is expected")
    return Plane(origin, cosines, spacing, abs(thickness))  # type: ignore[arg-type]


def _spacing(measures: Elements) -> tuple[float, ...] | None:
    """Return the Pixel Spacing (rows, columns) in mm; None if it is missing or not above 0."""
    spacing = elements.decimals(measures, _PIXEL_SPACING, 2)
    if not spacing or min(spacing) <= 0:
        return None
    _refuse_impossible("Pixel Spacing", spacing)
    return spacing


def _refuse_impossible(name: str, sizes: tuple[float, ...]) -> None:
    if not has_possible_sizes(sizes):
        smallest, largest = VOXEL_SIZES
        raise elements.ElementError(f"{name} is {sizes} mm; {smallest:g} to {largest:g} mm are expected")


def _shifted(plane: Plane | None, step: float) -> Plane | None:
    if plane is None:
        return None
    x, y, z = (float(value) for value in np.add(plane.position, step * plane.normal))
    return replace(plane, position=(x, y, z))


def _scaling(dataset: Elements) -> tuple[float, float]:
    slope, intercept = elements.decimal(dataset, _SLOPE), elements.decimal(dataset, _INTERCEPT)
    # A slope of 0 breaks the standard. GDCM takes it as 1, so we do, too.
    return slope or 1.0, intercept or 0.0
