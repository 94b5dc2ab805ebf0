"""The values of the frames of a file, and how plainly stored ones are copied from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.errors import ImageConversionError

Array = npt.NDArray[Any]
Dtype = np.dtype[Any]

_INTEGERS = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32))
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_FLOAT32_EXACT = 1 << 24
# CT, MR and PET images (DICOM PS3.4 B.5): Rescale Slope and Intercept are all there is between file and value.
_DIRECT_CLASSES = frozenset(("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"))


@dataclass(frozen=True)
class SliceValues:
    """The values of one frame, kept as stored until they are written.

    Parameters
    ----------
    stored : ndarray (rows, columns) or (rows, columns, samples)
        Stored values; those of the image are ``stored * slope + intercept``.
    slope, intercept : float
        The scaling. Whole numbers unless the values are already floating point (then 1 and 0).
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
        """Make one from stored values and their scaling."""
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
        """Return a copy that keeps neither its whole file in memory nor a type larger than it needs."""
        if self.stored.base is None:
            return self
        if (self.slope, self.intercept) != (1.0, 0.0):
            return replace(self, stored=self.stored.copy())
        return replace(self, stored=self.stored.astype(self.dtype))

    def equals(self, other: SliceValues) -> bool:
        """Tell whether two frames have the same values."""
        same_kind = self.dtype == other.dtype and self.stored.shape == other.stored.shape
        return same_kind and np.array_equal(self.values(self.dtype), other.values(self.dtype), equal_nan=True)

    def values(self, dtype: Dtype) -> Array:
        """Give the values in ``dtype``, which must hold them."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.stored.astype(dtype, copy=False)
        if self.slope == 1.0 and dtype.kind != "f":
            # Integers wrap around, so the sum is right whenever the result fits, as it does.
            offset = np.array(int(self.intercept)).astype(dtype)
            return np.asarray(self.stored.astype(dtype, copy=False) + offset)
        scaled = self.stored.astype(np.float64) * self.slope + self.intercept
        return np.asarray(scaled.astype(dtype))


def _all_equal(values: Array, rounded: Any) -> bool:
    """Tell whether rounding changes nothing; most slices that it changes show it in their middle row."""
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
    """Give the smallest data type that holds the values of all slices exactly."""
    low, high = min(part.low for part in slices), max(part.high for part in slices)
    kinds = {part.dtype for part in slices}
    if not kinds & {_FLOAT32, _FLOAT64}:
        return _integer_dtype(low, high)
    whole = [part for part in slices if part.dtype.kind != "f"]
    fits = all(part.low >= -_FLOAT32_EXACT and part.high <= _FLOAT32_EXACT for part in whole)
    return _FLOAT64 if _FLOAT64 in kinds or not fits else _FLOAT32


def is_plain(header: ImageHeader) -> bool:
    """Tell whether the pixel data of a file may be copied as it is."""
    length = header.frame_bytes
    return (
        header.pixel_offset >= 0
        and header.pixel_length in (length, length + length % 2)
        and header.sop_class in _DIRECT_CLASSES
        and len(header.frames) == 1
        and not header.tiles
        and header.samples == 1
        and header.photometric == "MONOCHROME2"
        and header.bits_allocated in (8, 16)
        and 0 < header.bits_stored <= header.bits_allocated
        and header.high_bit == header.bits_stored - 1
        and not header.modality_lut
    )


def copy_slice(header: ImageHeader) -> SliceValues | None:
    """Copy the raw pixel data of a plain file; None if its bits are not what the header says.

    Raises
    ------
    ImageConversionError
        If the file is truncated.
    """
    stored = _copy_stored(header)
    if not _within_bits(stored, header):
        return None
    frame = header.frames[0]
    return SliceValues.of(stored, frame.slope, frame.intercept)


def _copy_stored(header: ImageHeader) -> Array:
    kind = f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}"
    if header.held is not None:
        held: Array = np.frombuffer(header.held, kind, header.rows * header.columns, header.pixel_offset)
        return held.reshape(header.rows, header.columns)
    stored: Array = np.empty((header.rows, header.columns), dtype=kind)
    with header.path.open("rb", buffering=0) as stream:
        stream.seek(header.pixel_offset)
        read = stream.readinto(stored.data.cast("B"))
    if read != stored.nbytes:
        message = f"{header.path.name} is truncated: {read} of {stored.nbytes} bytes of pixel data"
        raise ImageConversionError(message, hint="download the scan again")
    return stored


def _within_bits(stored: Array, header: ImageHeader) -> bool:
    """Tell whether the bits above Bits Stored hold nothing but the sign."""
    if header.bits_stored == header.bits_allocated:
        return True
    if header.signed:
        limit = 1 << (header.bits_stored - 1)
        return bool(-limit <= stored.min() and stored.max() < limit)
    return bool(stored.max() < 1 << header.bits_stored)
