"""Reading and writing the segments of a DICOM SEG: number, value, name and colour.

Colours are sRGB in labels and CIELab in DICOM objects.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.objects import decoded, encodings_of
from monailabel_xnat.convert.labelmap import LARGEST_VALUE, Segment
from monailabel_xnat.errors import LabelFileError

VALUE_DESCRIPTION = "label value {}"
"""What `write_seg` writes as Segment Description. It keeps the value of a label, because the segments of a SEG must be
numbered from 1."""

LONGEST_LINE = 64
"""How many characters a value of type LO may have (DICOM PS3.5 6.2)."""

_SEGMENTS = 0x00620002
_NUMBER = 0x00620004
_LABEL = 0x00620005
_DESCRIPTION = 0x00620006
_COLOUR = 0x0062000D

RGB = tuple[int, int, int]

# The primaries of sRGB in CIE XYZ, and their white point (D65). DICOM PS3.3 C.10.7.1.1 refers to D50, but dcmqi and
# dcmjs, which the OHIF viewer uses, encode for D65. With another white point a colour would change a little each time
# that it is written and read.
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
    """Return a colour (0 to 255 each) as Recommended Display CIELab Value, three numbers of 16 bits.

    The encoding is that of DICOM PS3.3 C.10.7.1.1.
    """
    encoded = np.array(colour) / 255.0
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    ratio = _TO_XYZ @ linear / _WHITE
    fx, fy, fz = np.where(ratio > _EPSILON, np.cbrt(ratio), (_KAPPA * ratio + 16) / 116)
    lab = np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])
    scaled = (lab + _LAB_OFFSET) / _LAB_RANGE * 65535
    lightness, a, b = (int(value) for value in np.clip(np.rint(scaled), 0, 65535))
    return lightness, a, b


def dicom_lab_to_rgb(values: Sequence[int]) -> RGB:
    """Return the colour (0 to 255 each) of a Recommended Display CIELab Value; colours outside sRGB are clipped."""
    lightness, a, b = np.array(values, dtype=np.float64) / 65535 * _LAB_RANGE - _LAB_OFFSET
    fy = (lightness + 16) / 116
    roots = np.array([fy + a / 500, fy, fy - b / 200])
    ratio = np.where(roots**3 > _EPSILON, roots**3, (116 * roots - 16) / _KAPPA)
    linear = np.clip(_FROM_XYZ @ (ratio * _WHITE), 0.0, 1.0)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    red, green, blue = (int(value) for value in np.clip(np.rint(encoded * 255), 0, 255))
    return red, green, blue


def default_colour(number: int) -> RGB:
    """Return a colour for the segment with this number. Neighbouring numbers get colours that differ clearly."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1.0, 0.75, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def read_segments(dataset: Dataset) -> tuple[tuple[Segment, ...], dict[int, int], list[str]]:
    """Return the segments of a DICOM SEG, the value for each segment number, and notes.

    Raises
    ------
    LabelFileError
        If it describes no segment.
    """
    encodings = encodings_of(dataset)
    items = {elements.integer(item, _NUMBER): item for item in elements.items(dataset, _SEGMENTS)}
    # An object of type LABELMAP may describe its background as segment 0.
    items.pop(0, None)
    if not items:
        raise LabelFileError("the DICOM SEG describes no segment", hint="store it again from the program that made it")
    values, notes = _values({number: decoded(item, _DESCRIPTION, encodings) for number, item in items.items()})
    segments = []
    for number, item in sorted(items.items()):
        name = decoded(item, _LABEL, encodings) or f"Segment {number}"
        lab = elements.integers(item, _COLOUR)
        segments.append(Segment(values[number], name, dicom_lab_to_rgb(lab) if len(lab) == 3 else None))
    return tuple(segments), values, notes


def _values(descriptions: Mapping[int, str]) -> tuple[dict[int, int], list[str]]:
    """Return the value of each segment number, and notes.

    The value is the one that the description of the segment states. Without that it is the segment number, or the next
    free value if another segment has that number as its value.
    """
    pattern = re.compile(VALUE_DESCRIPTION.format(r"(\d{1,5})"))
    stated = {number: int(found[1]) for number, text in descriptions.items() if (found := pattern.fullmatch(text))}
    if len(set(stated.values())) < len(stated) or not all(0 < value <= LARGEST_VALUE for value in stated.values()):
        stated = {}
    values, notes = dict(stated), []
    taken, free = set(stated.values()), 1
    for number in sorted(descriptions.keys() - stated.keys()):
        while free in taken:
            free += 1
        values[number] = number if number not in taken else free
        taken.add(values[number])
        if values[number] != number:
            notes.append(f"segment {number} has the value {values[number]}: another one has {number}")
    return values, notes


def described_segment(number: int, segment: Segment, algorithm: Mapping[str, str]) -> Dataset:
    """Return an item of the Segment Sequence. Its description keeps the value of the label."""
    dataset: Dataset = items(**algorithm)[0]
    dataset.SegmentNumber = number
    dataset.SegmentLabel = one_line(segment.name) or f"Segment {segment.value}"
    dataset.SegmentDescription = VALUE_DESCRIPTION.format(segment.value)
    # A label map does not say what kind of structure a segment is, so the most general codes are used.
    dataset.SegmentedPropertyCategoryCodeSequence = code("123037004", "SCT", "Anatomical Structure")
    dataset.SegmentedPropertyTypeCodeSequence = code("85756007", "SCT", "Tissue")
    colour = segment.colour or default_colour(number)
    dataset.RecommendedDisplayCIELabValue = list(rgb_to_dicom_lab(colour))
    return dataset


def items(**elements: Any) -> Items:
    """Return a sequence with one item, which has these elements (keyword = value)."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Items([dataset])


def code(value: str, scheme: str, meaning: str) -> Items:
    """Return a code sequence with one item."""
    return items(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def one_line(text: str) -> str:
    """Return text as a value of type LO: without line breaks, without backslashes (they separate values), and cut."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text.replace("\\", "/"))
    return plain.strip()[:LONGEST_LINE].strip()
