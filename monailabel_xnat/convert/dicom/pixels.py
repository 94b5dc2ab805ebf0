"""The meaning of stored pixel values: grey values, inverted grey values, indices of colours, other colour spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut, convert_color_space

Array = npt.NDArray[Any]

PLAIN = "MONOCHROME2"
INVERTED = "MONOCHROME1"
PALETTE = "PALETTE COLOR"
YBR = "YBR_FULL"
SUBSAMPLED = "YBR_FULL_422"

Dtype = np.dtype[Any]
_INTEGERS = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32))
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_FLOAT32_EXACT = 1 << 24


def within_bits(stored: Array, allocated: int, bits: int, signed: bool) -> Array:
    """Return stored values without the bits above Bits Stored. Old files keep overlays in those bits.

    Parameters
    ----------
    stored : ndarray
        Stored values, of ``allocated`` bits each.
    allocated, bits : int
        Bits Allocated and Bits Stored. The stored bits must be the lowest ones.
    signed : bool
        Whether the highest stored bit is the sign.
    """
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if low <= int(stored.min()) and int(stored.max()) <= high:
        return stored
    shift = stored.dtype.type(allocated - bits)
    # A shift to the right repeats the sign bit of signed values, and puts zeros before unsigned values.
    return np.asarray((stored << shift) >> shift)


def inverted(stored: Array, bits: int, signed: bool) -> Array:
    """Return the values of an image whose smallest value is white (MONOCHROME1), inverted as ITK does it."""
    if signed:
        return np.asarray(-1 - stored)
    return np.asarray(stored.dtype.type((1 << bits) - 1) - stored)


def colours_of_indices(indices: Array, tables: Dataset) -> Array:
    """Return the RGB colours of palette indices: the highest 8 bits of each entry, as ITK does it.

    Parameters
    ----------
    indices : ndarray
        Indices, in any shape.
    tables : Dataset
        A dataset with the three tables of the palette, plain or segmented.

    Returns
    -------
    ndarray, uint8
        The shape of ``indices`` with a last axis of size 3.
    """
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        if name in tables and not tables.is_little_endian:
            # pydicom reads the table in the byte order of this machine.
            tables[name].value = np.frombuffer(tables[name].value, ">u2").astype("<u2").tobytes()
    colours = apply_color_lut(indices, tables)
    entry_bits = tables.RedPaletteColorLookupTableDescriptor[2]
    return np.asarray(colours >> max(0, entry_bits - 8), dtype=np.uint8)


def looked_up(stored: Array, tables: Dataset) -> Array:
    """Return the values that the Modality LUT Sequence of a dataset assigns to stored values."""
    return np.asarray(apply_modality_lut(stored, tables))


def rgb_of_ybr(values: Array) -> Array:
    """Return the RGB colours of 8-bit YBR_FULL colours; the samples are the last axis."""
    return np.asarray(convert_color_space(values, YBR, "RGB", per_frame=values.ndim > 3))


@dataclass(frozen=True)
class SliceValues:
    """The values of one frame. They are kept as they are stored until they are written.

    Parameters
    ----------
    stored : ndarray (rows, columns) or (rows, columns, samples)
        Stored values. The values of the image are ``stored * slope + intercept``.
    slope, intercept : float
        The scaling: whole numbers. A scaling by other numbers is already applied to ``stored``, and is 1 and 0 here.
    low, high : float
        Smallest and largest value.
    dtype : dtype
        The smallest of uint8, int16, uint16, int32, float32, float64 that holds all values exactly.
    """

    stored: Array
    slope: float
    intercept: float
    low: float
    high: float
    dtype: Dtype

    @classmethod
    def of(cls, stored: Array, slope: float = 1.0, intercept: float = 0.0) -> SliceValues:
        """Return the values of a frame from its stored values and their scaling.

        Parameters
        ----------
        stored : ndarray (rows, columns) or (rows, columns, samples)
            The stored values.
        slope, intercept : float
            Rescale Slope and Rescale Intercept.
        """
        if stored.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
            if (slope, intercept) != (1.0, 0.0):
                stored = stored.astype(np.float64) * slope + intercept
            return cls._of_floats(stored)
        ends = [float(end) * slope + intercept for end in (stored.min(), stored.max())]
        low, high = min(ends), max(ends)
        dtype = _integer_dtype(low, high)
        if dtype == _FLOAT64:
            return cls._of_floats(stored.astype(np.float64) * slope + intercept)
        return cls(stored, slope, intercept, low, high, dtype)

    @classmethod
    def _of_floats(cls, values: Array) -> SliceValues:
        low, high = float(values.min()), float(values.max())
        if np.isfinite(low) and np.isfinite(high) and _all_equal(values, np.rint):
            dtype = _integer_dtype(low, high)
            if dtype.kind != "f":
                return cls(values.astype(dtype), 1.0, 0.0, low, high, dtype)
        with np.errstate(over="ignore"):
            single = _all_equal(values, lambda part: part.astype(np.float32))
        dtype = _FLOAT32 if single else _FLOAT64
        return cls(values.astype(dtype, copy=False), 1.0, 0.0, low, high, dtype)

    def compact(self) -> SliceValues:
        """Return the same values in an array of their own, so that the array of the whole file can leave memory.

        Values without a scaling get the smallest type that holds them.
        """
        if self.stored.base is None:
            return self
        if (self.slope, self.intercept) != (1.0, 0.0):
            return replace(self, stored=self.stored.copy())
        return replace(self, stored=self.stored.astype(self.dtype))

    def equals(self, other: SliceValues) -> bool:
        """Return whether two frames have the same values."""
        same_kind = self.dtype == other.dtype and self.stored.shape == other.stored.shape
        return same_kind and np.array_equal(self.values(self.dtype), other.values(self.dtype), equal_nan=True)

    def values(self, dtype: Dtype) -> Array:
        """Return the values in ``dtype``, which must hold them."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.stored.astype(dtype, copy=False)
        if self.slope == 1.0 and dtype.kind != "f":
            # Integers wrap around, so the sum is right because the result fits into the type.
            offset = np.array(int(self.intercept)).astype(dtype)
            return np.asarray(self.stored.astype(dtype, copy=False) + offset)
        scaled = self.stored.astype(np.float64) * self.slope + self.intercept
        return np.asarray(scaled.astype(dtype))


def _all_equal(values: Array, rounded: Any) -> bool:
    """Return whether rounding changes nothing. The middle row is compared first, because most changes show there."""
    middle = values[len(values) // 2]
    if not np.array_equal(rounded(middle), middle, equal_nan=True):
        return False
    return np.array_equal(rounded(values), values, equal_nan=True)


def _integer_dtype(low: float, high: float) -> Dtype:
    for dtype in _INTEGERS:
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return dtype
    return _FLOAT64


def common_dtype(slices: Sequence[SliceValues]) -> Dtype:
    """Return the smallest data type that holds the values of all slices exactly."""
    low, high = min(part.low for part in slices), max(part.high for part in slices)
    kinds = {part.dtype for part in slices}
    if not kinds & {_FLOAT32, _FLOAT64}:
        return _integer_dtype(low, high)
    whole = [part for part in slices if part.dtype.kind != "f"]
    fits = all(part.low >= -_FLOAT32_EXACT and part.high <= _FLOAT32_EXACT for part in whole)
    return _FLOAT64 if _FLOAT64 in kinds or not fits else _FLOAT32
