"""What stored pixel values stand for: grey values, inverted ones, indices of colours, other colour spaces."""

from __future__ import annotations

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


def within_bits(stored: Array, allocated: int, bits: int, signed: bool) -> Array:
    """Return stored values without what lies above Bits Stored, where old files keep overlays.

    Parameters
    ----------
    stored : ndarray
        Stored values, of ``allocated`` bits each.
    allocated, bits : int
        Bits Allocated and Bits Stored; the High Bit is the last of the stored ones.
    signed : bool
        Whether the highest stored bit is the sign.
    """
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if low <= int(stored.min()) and int(stored.max()) <= high:
        return stored
    shift = stored.dtype.type(allocated - bits)
    # The shift to the right repeats the sign of signed values, and fills up unsigned ones with zeros.
    return np.asarray((stored << shift) >> shift)


def inverted(stored: Array, bits: int, signed: bool) -> Array:
    """Return the values of an image whose smallest value is white (MONOCHROME1), turned over as ITK does it."""
    if signed:
        return np.asarray(-1 - stored)
    return np.asarray(stored.dtype.type((1 << bits) - 1) - stored)


def colours_of_indices(indices: Array, tables: Dataset) -> Array:
    """Return the RGB colours of palette indices, with the highest 8 bits of each entry, as ITK does it.

    Parameters
    ----------
    indices : ndarray
        Any shape.
    tables : Dataset
        With the palette's three tables, plain or segmented.
    """
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        if name in tables and not tables.is_little_endian:
            # pydicom reads the table in the order of this machine.
            tables[name].value = np.frombuffer(tables[name].value, ">u2").astype("<u2").tobytes()
    colours = apply_color_lut(indices, tables)
    entry_bits = tables.RedPaletteColorLookupTableDescriptor[2]
    return np.asarray(colours >> max(0, entry_bits - 8), dtype=np.uint8)


def looked_up(stored: Array, tables: Dataset) -> Array:
    """Return what the Modality LUT Sequence of a dataset makes of stored values."""
    return np.asarray(apply_modality_lut(stored, tables))


def rgb_of_ybr(values: Array) -> Array:
    """Return the RGB colours of 8-bit YBR_FULL samples (last axis)."""
    return np.asarray(convert_color_space(values, YBR, "RGB", per_frame=values.ndim > 3))
