"""Siemens mosaics: all slices of a volume tiled into one picture, as scanners export fMRI and diffusion.

Tile after tile, row by row, the slices follow each other along the slice normal that Siemens' own header (CSA) states.
Image Position (Patient) is that of the picture, as if it were one large slice about the same centre: the tiles lie
further inside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pydicom

from monailabel_xnat.convert.dicom.elements import ElementError
from monailabel_xnat.convert.geometry import Plane

if TYPE_CHECKING:
    from monailabel_xnat.convert.dicom.headers import ImageHeader

with warnings.catch_warnings():
    # nibabel calls all of its DICOM readers experimental; only the reader of Siemens' header is used.
    warnings.simplefilter("ignore")
    from nibabel.nicom import csareader

_csa: Any = csareader

MOSAIC = "MOSAIC"
"""The part of an Image Type that says so."""


def is_mosaic(image_type: Sequence[str]) -> bool:
    """Return whether an Image Type is that of a mosaic."""
    return MOSAIC in image_type


def untiled(picture: ImageHeader, stream: BinaryIO) -> ImageHeader:
    """Return the header of a mosaic with its tiles as frames; as it is, if Siemens' own header is missing.

    Raises
    ------
    ElementError
        If its numbers make no sense.
    """
    stream.seek(0)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    csa = _csa.get_csa_header(dataset, "image")
    count = int((_csa.get_n_mosaic(csa) if csa else None) or 0)
    frame = picture.frames[0]
    if count < 1 or frame.plane is None:
        return picture
    tiles = math.ceil(math.sqrt(count))
    if picture.rows % tiles or picture.columns % tiles:
        raise ElementError(f"a mosaic of {picture.columns} x {picture.rows} pixels cannot hold {count} tiles")
    step = dataset.get("SpacingBetweenSlices")
    if not step or not float(step) > 0:
        raise ElementError("a mosaic without Spacing Between Slices does not say where its slices lie")
    rows, columns = picture.rows // tiles, picture.columns // tiles
    stated = _csa.get_slice_normal(csa)
    normal = frame.plane.normal if stated is None else frame.plane.normal * np.sign(frame.plane.normal @ stated)
    if not normal.any():
        raise ElementError("the slice normal of a mosaic does not fit to Image Orientation (Patient)")
    first = _first_pixel(frame.plane, picture.rows - rows, picture.columns - columns)
    frames = []
    for number in range(count):
        x, y, z = (float(value) for value in first + number * float(step) * normal)
        plane = replace(frame.plane, position=(x, y, z), thickness=float(step))
        frames.append(replace(frame, index=number, plane=plane))
    return replace(picture, rows=rows, columns=columns, tiles=tiles, frames=tuple(frames))


def picture_of(header: ImageHeader) -> ImageHeader:
    """Return the header of the one picture that a mosaic is stored as."""
    frames = (replace(header.frames[0], index=0),)
    rows, columns = header.rows * header.tiles, header.columns * header.tiles
    return replace(header, rows=rows, columns=columns, tiles=0, frames=frames)


def _first_pixel(plane: Plane, rows: int, columns: int) -> Any:
    """Return the position of the first pixel of a slice that is so many rows and columns smaller than the picture."""
    along_row, along_column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    inwards = along_column * plane.spacing[0] * rows + along_row * plane.spacing[1] * columns
    return np.array(plane.position) + inwards / 2.0
