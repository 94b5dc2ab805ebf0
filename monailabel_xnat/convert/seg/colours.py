"""Colours of segments: sRGB, as labels carry them, and the CIELab of DICOM objects."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

RGB = tuple[int, int, int]

# sRGB primaries in CIE XYZ, and their white (D65). DICOM PS3.3 C.10.7.1.1 refers to D50, but dcmqi, dcmjs and with
# it the OHIF viewer encode for D65: with anything else a colour would change a little on each way there and back.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_WHITE = np.array([0.950456, 1.0, 1.088754])

# L* runs from 0 to 100, a* and b* from -128 to 127.
_LAB_OFFSET = np.array([0.0, 128.0, 128.0])
_LAB_RANGE = np.array([100.0, 255.0, 255.0])

_GOLDEN_RATIO = 0.618033988749895
_EPSILON = 216 / 24389
_KAPPA = 24389 / 27


def rgb_to_dicom_lab(colour: RGB) -> tuple[int, int, int]:
    """Encode a colour as Recommended Display CIELab Value (DICOM PS3.3 C.10.7.1.1), 16 bits each."""
    encoded = np.array(colour) / 255.0
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    ratio = _TO_XYZ @ linear / _WHITE
    fx, fy, fz = np.where(ratio > _EPSILON, np.cbrt(ratio), (_KAPPA * ratio + 16) / 116)
    lab = np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])
    scaled = (lab + _LAB_OFFSET) / _LAB_RANGE * 65535
    lightness, a, b = (int(value) for value in np.clip(np.rint(scaled), 0, 65535))
    return lightness, a, b


def dicom_lab_to_rgb(values: Sequence[int]) -> RGB:
    """Decode a Recommended Display CIELab Value; colours that sRGB lacks are clipped."""
    lightness, a, b = np.array(values, dtype=np.float64) / 65535 * _LAB_RANGE - _LAB_OFFSET
    fy = (lightness + 16) / 116
    roots = np.array([fy + a / 500, fy, fy - b / 200])
    ratio = np.where(roots**3 > _EPSILON, roots**3, (116 * roots - 16) / _KAPPA)
    linear = np.clip(_FROM_XYZ @ (ratio * _WHITE), 0.0, 1.0)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    red, green, blue = (int(value) for value in np.clip(np.rint(encoded * 255), 0, 255))
    return red, green, blue


def default_colour(number: int) -> RGB:
    """Give a colour for the segment of this number, well apart from those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1.0, 0.75, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)
