"""Label files: they are read in the formats that clients send, and written as NIfTI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.itk import read_itk_file, without_bzip2
from monailabel_xnat.convert.labelmap import LARGEST_VALUE, LabelMap, Segment, refuse_larger, unclaimed
from monailabel_xnat.convert.nifti import read_nifti, write_nifti
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")

ROUNDING = 0.01
"""A value that is at most this far from a whole number is rounded to it. Programs that store a mask of floats in 8 bits
with a scale factor write 0.996 or 1.00000006 for 1. Probabilities and resampled masks differ by more."""

Notes = tuple[str, ...]


def read_label(path: Path, image: Grid | None = None) -> LabelMap:
    """Read a label map.

    Segments of a ``.seg.nrrd`` that overlap (3D Slicer keeps them in layers) are merged: a voxel that several segments
    claim belongs to the segment that comes later in the header.

    Parameters
    ----------
    path : Path
        ``.nii``, ``.nii.gz``, ``.nrrd``, ``.seg.nrrd``, ``.mha`` or ``.mhd``.
    image : Grid, optional
        The grid of its image. A label that is too large for it is refused before its voxels are unpacked.

    Returns
    -------
    LabelMap
        Array (i, j, k), uint8 or uint16, in the index order of the file; affine to RAS, mm. It is not yet compared
        with the grid of the image.

    Raises
    ------
    LabelFileError
        If the file is missing, empty, damaged or not a label map. A label map has no values that are negative,
        fractional or above 65535; if it has several channels, there is one channel for each value.
    LabelGeometryError
        If it is larger than its image with any margin that programs add (`PADDING`).
    """
    if not path.is_file():
        raise LabelFileError(f"no such label file: {path.name}", hint="check the path")
    if path.stat().st_size == 0:
        raise LabelFileError(f"the label file is empty: {path.name}", hint="save the segmentation again")
    if not path.name.lower().endswith(_SUFFIXES):
        known = ", ".join(_SUFFIXES)
        raise LabelFileError(f"not a label file: {path.name}", hint=f"save the segmentation as one of {known}")

    def accept(shape: tuple[int, ...]) -> None:
        if image is not None:
            refuse_larger(shape, image)

    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            header, values = read_nifti(path, accept)
            array, notes = label_values(values)
            return LabelMap(array, header.affine, notes=notes)
        return _read_itk_label(path, accept)
    except ValueError as error:
        if isinstance(error, LabelGeometryError):
            raise
        raise LabelFileError(
            f"{path.name} is no label map: {error}",
            hint="send one volume of whole numbers from 0 to 65535, as NIfTI, NRRD or MetaImage",
        ) from error


def write_label(label: LabelMap, path: Path) -> None:
    """Write a label map as NIfTI. Equal labels give equal bytes.

    Parameters
    ----------
    label : LabelMap
        The label. The file holds its array as uint8 or uint16, and its affine; names and colours of segments do not
        go into the file.
    path : Path
        The file to write: ``.nii.gz`` or ``.nii``. It appears only when it is whole.
    """

    def slices() -> Iterator[npt.NDArray[Any]]:
        yield from (label.array[:, :, k].T for k in range(label.array.shape[2]))

    write_nifti(path, label.array.shape, label.affine, label.array.dtype, slices())


def _read_itk_label(path: Path, accept: Callable[[tuple[int, ...]], None]) -> LabelMap:
    with without_bzip2(path, accept) as plain:
        file = read_itk_file(plain, accept)
    fields = parse_segments(file.fields)
    if not fields:
        array, notes = label_values(file.values)
        return LabelMap(array, file.affine, notes=notes)
    stack, rounded = whole_numbers(file.values if file.values.ndim == 4 else file.values[..., np.newaxis])
    merged, segments, notes = merge_components(stack, fields)
    return LabelMap(whole_numbers(merged)[0], file.affine, segments, (*rounded, *notes))


def label_values(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Notes]:
    """Return the values of a label map, and notes.

    Parameters
    ----------
    values : ndarray (i, j, k) or more
        The values as they are in the file. If there are several channels (along the last axis), each voxel must belong
        to exactly one of them, and the first channel is the background. MONAI writes labels so with ``to_onehot``.
        Channels may also be probabilities: each voxel then gets the most probable one.

    Returns
    -------
    ndarray (i, j, k), uint8 or uint16
        Whole numbers.
    tuple of str
        What was changed, in words.

    Raises
    ------
    ValueError
        If the values are not a label map; the message says what they are.
    """
    while values.ndim < 3:
        values = values[..., np.newaxis]
    # NIfTI keeps channels in the fifth dimension, behind a time of one step.
    channels = values.reshape((*values.shape[:3], -1), order="F") if values.ndim > 3 else values[..., np.newaxis]
    large = [size for size in values.shape[3:] if size != 1]
    if len(large) > 1:
        raise ValueError(f"it has {values.ndim} dimensions: {_sizes(values)}")
    if not large:
        return whole_numbers(channels[..., 0])
    return _chosen_channels(channels, _sizes(values))


def whole_numbers(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Notes]:
    """Return values as whole numbers, and notes.

    Parameters
    ----------
    values : ndarray
        Numbers of any type and shape. Values within `ROUNDING` of a whole number are rounded.

    Returns
    -------
    ndarray of the same shape, uint8 or uint16
        The whole numbers; uint16 only if one is above 255.
    tuple of str
        How many values were rounded; empty if none were.

    Raises
    ------
    ValueError
        If a value is not a whole number from 0 to 65535; the message says what the values are.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it holds {_kind(values)}")
    if values.dtype == np.uint8:
        return values, ()
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    if low < -ROUNDING or (low < 0 and values.dtype.kind != "f"):
        raise ValueError(f"it holds negative values, down to {low:g}")
    if high > LARGEST_VALUE + ROUNDING:
        raise ValueError(f"it holds values above {LARGEST_VALUE}, up to {high:g}")
    dtype = np.uint8 if high < np.iinfo(np.uint8).max + 0.5 else np.uint16
    if values.dtype.kind != "f":
        return values.astype(dtype, copy=False), ()
    rounded = np.rint(values)
    whole = rounded.astype(dtype)
    if np.array_equal(rounded, values):
        return whole, ()
    off = np.abs(values - rounded)
    farthest = float(off.max())
    if farthest > ROUNDING:
        raise ValueError(_fractions(values, off > ROUNDING))
    count = int(np.count_nonzero(off))
    return whole, (f"{count} voxels rounded to whole numbers, by up to {farthest:.2g}",)


def _chosen_channels(channels: npt.NDArray[Any], sizes: str) -> tuple[npt.NDArray[Any], Notes]:
    """Return the number of the channel that each voxel belongs to."""
    count = channels.shape[3]
    if count > LARGEST_VALUE:
        raise ValueError(f"it has {count} channels: {sizes}")
    dtype = np.uint8 if count <= np.iinfo(np.uint8).max + 1 else np.uint16
    if _are_probabilities(channels):
        return _most_probable(channels).astype(dtype), (
            f"{count} channels of probabilities: each voxel has the number of the most probable one, counted from 0",
        )
    try:
        masks = whole_numbers(channels)[0]
    except ValueError as error:
        raise ValueError(f"it has {count} channels ({sizes}), and they are no masks: {error}") from error
    largest = int(masks.max())
    if largest > 1:
        raise ValueError(
            f"it has {channels.ndim} dimensions: {sizes}, and values up to {largest}: {count} volumes, not one channel "
            "for each number"
        )
    claims = masks.sum(axis=3, dtype=np.uint16)
    several, none = int((claims > 1).sum()), int((claims == 0).sum())
    if several or none:
        raise ValueError(
            f"it has {channels.ndim} dimensions: {sizes}; as one channel for each number, with the background first, "
            f"it leaves {none} voxels without a channel and gives {several} voxels several"
        )
    note = f"{count} channels, of which each voxel has exactly one: the first is the background, the next the value 1"
    return masks.argmax(axis=3).astype(dtype), (note,)


def _are_probabilities(channels: npt.NDArray[Any]) -> bool:
    """Return whether the channels add up to 1 in each voxel, and have other values than 0 and 1."""
    if channels.dtype.kind != "f" or not (channels.min() >= -ROUNDING and channels.max() <= 1 + ROUNDING):
        return False
    if np.abs(channels - np.rint(channels)).max() <= ROUNDING:
        return False
    return bool(np.abs(channels.sum(axis=3, dtype=np.float64) - 1).max() <= ROUNDING)


def _most_probable(channels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    best = np.sort(channels, axis=3)[..., -2:]
    ties = int(np.count_nonzero(best[..., 0] == best[..., 1]))
    if ties:
        raise ValueError(
            f"it holds probabilities of {channels.shape[3]} classes, and {ties} voxels have two likeliest ones"
        )
    return np.asarray(channels.argmax(axis=3))


def _fractions(values: npt.NDArray[Any], off: npt.NDArray[np.bool_]) -> str:
    kind = "a probability map" if values.min() >= 0 and values.max() <= 1 else "an image or a resampled label map"
    return (
        f"it holds values that are no whole numbers, e.g. {values[off].flat[0]:g} ({np.count_nonzero(off)} voxels), as "
        f"{kind} does"
    )


def _kind(values: npt.NDArray[Any]) -> str:
    return "complex numbers" if values.dtype.kind == "c" else f"colours or other records ({values.dtype})"


def _sizes(values: npt.NDArray[Any]) -> str:
    return " x ".join(map(str, values.shape))


@dataclass(frozen=True)
class SegmentField:
    """A segment as a header describes it.

    Parameters
    ----------
    name : str
        Its name.
    colour : tuple of int, or None
        Red, green, blue, 0 to 255.
    layer : int or None
        The component of the file that holds its voxels; None if the header does not say.
    value : int or None
        The value that its voxels have there; None if the header does not say.
    """

    name: str
    colour: tuple[int, int, int] | None
    layer: int | None
    value: int | None


def parse_segments(fields: Mapping[str, str]) -> tuple[SegmentField, ...]:
    """Read the segments from the header fields ``Segment0_Name``, ``Segment0_LabelValue`` and so on.

    Returns
    -------
    tuple of SegmentField
        In the order of the header; empty if there are none.

    Raises
    ------
    ValueError
        If a layer, a value or a colour in the header is not a number.
    """
    numbers = sorted({int(found[1]) for key in fields if (found := re.match(r"Segment(\d+)_", key))})
    segments = []
    for number in numbers:

        def field(name: str, number: int = number) -> str:
            return fields.get(f"Segment{number}_{name}", "").strip()

        name = field("Name") or field("ID") or f"Segment_{number + 1}"
        layer, value = field("Layer"), field("LabelValue")
        segments.append(
            SegmentField(name, _colour(field("Color")), int(layer) if layer else None, int(value) if value else None)
        )
    return tuple(segments)


def merge_components(
    stack: npt.NDArray[Any], fields: Sequence[SegmentField]
) -> tuple[npt.NDArray[Any], tuple[Segment, ...], tuple[str, ...]]:
    """Make one label map of the components of a file.

    3D Slicer keeps segments that overlap in several components, which it calls layers. Up to version 4.10 it wrote one
    component for each segment and stated neither layer nor value: segment i is component i with the value 1. A voxel
    that several segments claim belongs to the segment that comes later in the header.

    Parameters
    ----------
    stack : ndarray (i, j, k, components)
        Whole numbers.
    fields : sequence of SegmentField
        In the order of the header. Two in different components may have the same value.

    Returns
    -------
    ndarray (i, j, k)
        One value for each voxel.
    tuple of Segment
        The segments. In a file of several components they are numbered anew, from 1, if two had the same value.
    tuple of str
        Notes: how many voxels several segments claimed, which values no segment claimed, and whether segments were
        numbered anew.

    Raises
    ------
    ValueError
        If a segment names a component that does not exist or has an impossible value, or if there are several
        components and no segment claims some of their voxels.
    """
    count = stack.shape[3]
    layers, values = _layers(fields, count), _values(fields, count)
    segments = [Segment(value, field.name, field.colour) for value, field in zip(values, fields, strict=True)]
    if count == 1:
        whole = stack[..., 0]
        # Some writers list the background as a segment.
        segments = [segment for segment in segments if segment.value]
        shared = len(segments) - len({segment.value for segment in segments})
        notes = (
            [f"{shared} segments have the value of another one: the later one in the header counts"] if shared else []
        )
        missing = unclaimed(whole, segments)
        if missing:
            notes.append(f"values that no segment of the file claims are kept: {missing}")
        return whole, tuple(segments), tuple(notes)
    _refuse_unclaimed(stack, segments, layers)
    return _merged(stack, segments, layers)


def _layers(fields: Sequence[SegmentField], count: int) -> list[int]:
    """Return the component of each segment."""
    if count > 1 and all(field.layer is None for field in fields):
        layers = list(range(len(fields)))
    else:
        layers = [field.layer or 0 for field in fields]
    for field, layer in zip(fields, layers, strict=True):
        if not 0 <= layer < count:
            raise ValueError(f"segment {field.name!r} should lie in component {layer}, but it has {count}, from 0 on")
    return layers


def _values(fields: Sequence[SegmentField], count: int) -> list[int]:
    """Return the value of each segment in its component."""
    sharing = Counter(field.layer for field in fields)
    values = []
    for place, field in enumerate(fields):
        is_alone = count > 1 and (field.layer is None or sharing[field.layer] == 1)
        value = (1 if is_alone else place + 1) if field.value is None else field.value
        if value < 0 or (value == 0 and count > 1):
            raise ValueError(f"segment {field.name!r} has the value {value}, which is no value of a segment")
        values.append(value)
    return values


def _refuse_unclaimed(stack: npt.NDArray[Any], segments: Sequence[Segment], layers: Sequence[int]) -> None:
    problems = []
    for component in range(stack.shape[3]):
        known = [segment for segment, layer in zip(segments, layers, strict=True) if layer == component]
        missing = unclaimed(stack[..., component], known)
        if missing:
            problems.append(f"component {component}, value {missing}")
    if problems:
        raise ValueError(f"no segment in its header claims {'; '.join(problems)}")


def _merged(
    stack: npt.NDArray[Any], segments: Sequence[Segment], layers: Sequence[int]
) -> tuple[npt.NDArray[Any], tuple[Segment, ...], tuple[str, ...]]:
    notes = []
    values = [segment.value for segment in segments]
    if len(set(values)) < len(values):
        values = list(range(1, len(segments) + 1))
        notes.append("segments in different layers shared values: numbered anew in the order of the header")
    # Look values up in tables: one pass over the voxels for each of thousands of segments would take hours.
    latest = np.zeros(stack.shape[:3], dtype=np.uint32)
    overlap = np.zeros(stack.shape[:3], dtype=bool)
    for layer in range(stack.shape[3]):
        ranks = np.zeros(LARGEST_VALUE + 1, dtype=np.uint32)
        is_shared = np.zeros(LARGEST_VALUE + 1, dtype=bool)
        for rank, (segment, place) in enumerate(zip(segments, layers, strict=True), start=1):
            if place == layer and segment.value <= LARGEST_VALUE:
                is_shared[segment.value] |= ranks[segment.value] > 0
                ranks[segment.value] = rank
        found = ranks[stack[..., layer]]
        overlap |= is_shared[stack[..., layer]] | ((found > 0) & (latest > 0))
        np.maximum(latest, found, out=latest)
    merged = np.array([0, *values], dtype=np.uint32)[latest]
    count = int(np.count_nonzero(overlap))
    if count:
        notes.append(f"{count} voxels belong to several segments: each has the later one in the header")
    renumbered = tuple(replace(segment, value=value) for segment, value in zip(segments, values, strict=True))
    return merged, renumbered, tuple(notes)


def _colour(text: str) -> tuple[int, int, int] | None:
    parts = text.split()
    if len(parts) != 3:
        return None
    red, green, blue = (min(1.0, max(0.0, float(part))) for part in parts)
    return round(red * 255), round(green * 255), round(blue * 255)
