"""Reading AIM 4 documents (https://wiki.nci.nih.gov): contours in pixels, as the XNAT-OHIF viewer saves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from monailabel_xnat.convert.contours.polygons import (
    FARTHEST_CORNER,
    empty_slices,
    fill_polygons,
    in_slice,
    is_flat,
    lost_contours,
)
from monailabel_xnat.convert.dicom.objects import SliceFinder
from monailabel_xnat.convert.geometry import Floats
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.labelmap import LARGEST_VALUE, Canvas, LabelMap, Segment
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

FIRST_CENTRE = 0.5
"""Where the centre of the first pixel lies along each axis, in pixels: AIM counts from the corner of the image."""

_LARGEST_FILE = 1 << 28
_ROOT = "ImageAnnotationCollection"
_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_POLYLINE = "TwoDimensionPolyline"
_DRAW_AGAIN = "save the contours again from the viewer that made them"


@dataclass(frozen=True, eq=False)
class _Contour:
    """A polyline: the image that it was drawn on, its corners (n, 2), x and y in pixels, and whether it is cut out."""

    instance_uid: str
    frame: int
    corners: Floats
    is_excluded: bool


@dataclass
class _Annotation:
    """One ROI of a document."""

    name: str = ""
    colour: tuple[int, int, int] | None = None
    contours: list[_Contour] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def read_aim(path: Path, grid: Grid) -> LabelMap:
    """Read an AIM 4 document as a label map on the grid of its image.

    Polylines are filled by the rule in :mod:`monailabel_xnat.convert.contours.polygons`. A polyline whose
    ``includeFlag`` is false is cut out. Where ROIs overlap, the voxel belongs to the later ROI. Other kinds of markup
    are not read; the notes say how many of each kind there are.

    Parameters
    ----------
    path : Path
        An ``ImageAnnotationCollection`` of AIM 4.
    grid : Grid
        The grid of the image. Its `sources` say which slice each DICOM image became.

    Returns
    -------
    LabelMap
        Array (i, j, k), uint8 or uint16. The ROIs have the values 1, 2, ... in the order of the document.

    Raises
    ------
    LabelFileError
        If the file is not an AIM 4 document, is damaged, or holds no contour.
    LabelGeometryError
        If none of its contours lies on an image of the grid.
    """
    annotations = [annotation for annotation in _annotations(path) if annotation.contours or annotation.others]
    drawn = [annotation for annotation in annotations if annotation.contours]
    notes = [
        f"{annotation.name}: {count} markups left aside ({kind})"
        for annotation in annotations
        for kind, count in annotation.others.items()
    ]
    if not drawn:
        message = f"{path.name} holds no contour{': ' if notes else ''}{'; '.join(notes)}"
        raise LabelFileError(message, hint="only contours (two-dimensional polylines) make a label map")
    if len(drawn) > LARGEST_VALUE:
        raise LabelFileError(f"{path.name} holds {len(drawn)} ROIs", hint=f"a label map holds at most {LARGEST_VALUE}")
    images = _Images(grid)
    canvas = Canvas(grid, len(drawn))
    segments = []
    for value, annotation in enumerate(drawn, start=1):
        segments.append(Segment(value, annotation.name or f"ROI {value}", annotation.colour))
        notes += _draw(segments[-1], annotation.contours, images, canvas)
    if not images.found:
        raise LabelGeometryError(
            f"none of the {images.missing} contours of {path.name} lies on an image of this series",
            hint="read it with the series that it was drawn on; the image must be stored as DICOM",
        )
    if canvas.overlap:
        notes.append(f"{canvas.overlap} voxels belong to several ROIs: each has the later one")
    return LabelMap(canvas.label_array(), grid.affine.copy(), tuple(segments), tuple(notes))


class _Images:
    """Finds the slices that contours were drawn on, and counts the contours with and without such a slice.

    Parameters
    ----------
    grid : Grid
        The grid of the image.
    """

    def __init__(self, grid: Grid) -> None:
        self.shape = grid.shape[0], grid.shape[1]
        self.found = self.missing = 0
        self._finder = SliceFinder(grid.sources())

    def slice_of(self, contour: _Contour) -> int | None:
        """Return the slice of the image that a contour was drawn on; None if the volume does not hold that image."""
        place = next(iter(self._finder.slices([(contour.instance_uid, (contour.frame,))])), None)
        self.found += place is not None
        self.missing += place is None
        return place


def _draw(segment: Segment, contours: Sequence[_Contour], images: _Images, canvas: Canvas) -> Iterator[str]:
    """Fill the contours of an ROI, one image after the other, and return notes."""
    placed: dict[tuple[str, int], list[_Contour]] = {}
    slices: dict[tuple[str, int], int] = {}
    elsewhere = 0
    for contour in contours:
        place = images.slice_of(contour)
        if place is None:
            elsewhere += 1
            continue
        # Group by image, not by slice: in a series over time several images lie in one slice.
        image = contour.instance_uid, contour.frame
        slices[image] = place
        placed.setdefault(image, []).append(contour)
    for image, found in placed.items():
        included = [contour.corners for contour in found if not contour.is_excluded]
        if included:
            excluded = [contour.corners for contour in found if contour.is_excluded]
            window, mask = fill_polygons(included, images.shape, excluded)
            canvas.paint(in_slice(window, slices[image]), mask, segment.value)
    drawn = [contour.corners for found in placed.values() for contour in found]
    if elsewhere:
        yield f"{segment.name}: {elsewhere} contours lie on other images"
    flat = sum(is_flat(corners, images.shape) for corners in drawn)
    if flat:
        yield f"{segment.name}: {flat} contours mark the voxels that they run through (without area)"
    yield from lost_contours(segment.name, drawn, images.shape)
    yield from empty_slices(segment.name, set(slices.values()))


def _annotations(path: Path) -> Iterator[_Annotation]:
    """Return the ROIs of a document, one after the other.

    The XML comes from other people, so entities and references to other files are refused.
    """
    if not path.is_file():
        raise LabelFileError(f"no such file: {path.name}", hint="check the path")
    if path.stat().st_size > _LARGEST_FILE:
        raise LabelFileError(
            f"{path.name} has {path.stat().st_size} bytes", hint="an AIM document is much smaller: give an AIM document"
        )
    try:
        with path.open("rb") as stream:
            yield from _parsed(path.name, iterparse(stream, events=("start", "end"), forbid_dtd=True))
    except LabelFileError:
        raise
    except (ParseError, DefusedXmlException, ValueError, OverflowError) as error:
        raise LabelFileError(f"{path.name} is damaged, or no AIM document: {error}", hint=_DRAW_AGAIN) from error


def _parsed(document: str, events: Iterator[tuple[str, Any]]) -> Iterator[_Annotation]:
    annotation = _Annotation()
    seen: set[tuple[str, int, bytes]] = set()
    _, root = next(events)
    if _name(root) != _ROOT:
        raise LabelFileError(f"{document} is no AIM 4 document, but {_name(root)!r}", hint="give an AIM 4 document")
    for event, element in events:
        name = _name(element)
        if event == "start":
            if name == "ImageAnnotation":
                annotation, seen = _Annotation(), set()
        elif name == "MarkupEntity":
            _add_markup(annotation, element, seen)
            element.clear()
        elif name == "ImageAnnotation":
            annotation.name = _value(element, "name")
            element.clear()
            yield annotation


def _add_markup(annotation: _Annotation, element: Any, seen: set[tuple[str, int, bytes]]) -> None:
    kind = str(element.get(_TYPE) or "without type").rpartition(":")[2]
    if kind != _POLYLINE:
        annotation.others[kind] += 1
        return
    corners = _corners(element)
    if not len(corners):
        annotation.others["polyline without points"] += 1
        return
    uid = _attribute(element, "imageReferenceUid", "root")
    frame = int(float(_value(element, "referencedFrameNumber") or 1))
    identity = uid, frame, corners.tobytes()
    if identity in seen:
        # By the even-odd rule a second copy would cancel the first.
        annotation.others["stored twice"] += 1
        return
    seen.add(identity)
    annotation.colour = annotation.colour or _colour(_value(element, "lineColour"))
    is_excluded = _value(element, "includeFlag").lower() in ("false", "0")
    annotation.contours.append(_Contour(uid, frame, corners - FIRST_CENTRE, is_excluded))


def _corners(element: Any) -> Floats:
    """Return the points (n, 2) of a polyline, x and y in pixels, in the order of the document.

    The last point is left out where it repeats the first, as it often does.
    """
    points = [
        (float(_value(point, "x")), float(_value(point, "y")))
        for point in element.iter()
        if _name(point) == "TwoDimensionSpatialCoordinate"
    ]
    corners = np.reshape(np.array(points, dtype=np.float64), (-1, 2))
    if not np.isfinite(corners).all():
        raise ValueError("a coordinate is not finite")
    if corners.size and np.abs(corners).max() > FARTHEST_CORNER:
        raise ValueError(f"a coordinate is {np.abs(corners).max():g}; at most {FARTHEST_CORNER:g} pixels are expected")
    return corners[:-1] if len(corners) > 1 and (corners[0] == corners[-1]).all() else corners


def _name(element: Any) -> str:
    """Return the name of an element without its namespace, which differs between the versions of AIM 4."""
    return str(element.tag).rpartition("}")[2]


def _value(element: Any, name: str) -> str:
    return _attribute(element, name, "value")


def _attribute(element: Any, name: str, attribute: str) -> str:
    """Return an attribute of a child; empty if there is none."""
    child = next((child for child in element if _name(child) == name), None)
    return "" if child is None else str(child.get(attribute) or "").strip()


def _colour(text: str) -> tuple[int, int, int] | None:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        return None
    red, green, blue = (min(255, int(part)) for part in parts)
    return red, green, blue
