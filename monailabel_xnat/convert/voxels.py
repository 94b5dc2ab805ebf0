"""What the voxels of a label file mean: whole numbers, or one channel for each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST_VALUE = 65535
"""Of a voxel: what uint16 holds."""

ROUNDING = 0.01
"""How far a value may be from a whole number to be taken for it. Writers that store a mask of floats in 8 bits with a
scale factor give 0.996 or 1.00000006 for 1; probabilities and resampled masks differ by more."""

Notes = tuple[str, ...]


def label_values(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Notes]:
    """Return the values of a label map, and notes.

    Parameters
    ----------
    values : ndarray (i, j, k) or more
        As they are in the file. With several channels, along the last axis, each voxel must belong to exactly one of
        them, the first one being the background: what MONAI writes with ``to_onehot``.

    Returns
    -------
    ndarray (i, j, k), uint8 or uint16
        Whole numbers.
    tuple of str
        What was changed.

    Raises
    ------
    ValueError
        If the values are no label map; the message says what they are.
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
    """Return whole numbers as uint8, or uint16 where they need it; rounds what is whole but for `ROUNDING`."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it holds {_kind(values)}")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    if low < -ROUNDING or (low < 0 and values.dtype.kind != "f"):
        raise ValueError(f"it holds negative values, down to {low:g}")
    if high > LARGEST_VALUE + ROUNDING:
        raise ValueError(f"it holds values above {LARGEST_VALUE}, up to {high:g}")
    dtype = np.uint8 if high < np.iinfo(np.uint8).max + 0.5 else np.uint16
    if values.dtype.kind != "f":
        return values.astype(dtype), ()
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
    """Tell whether the channels are shares that make 1 in each voxel, and not just 0 and 1."""
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
