"""Whether a label still lies on the grid of its image, which may have been replaced in XNAT since it was made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_xnat.catalog import Scan
from monailabel_xnat.convert import Grid
from monailabel_xnat.convert.labelmap import differences
from monailabel_xnat.errors import ImageError, LabelGeometryError, ServerError
from monailabel_xnat.images import Images

logger = logging.getLogger(__name__)


def grid_now(images: Images, scan: Scan) -> Grid | None:
    """Return the grid of an image as it is now; None if the image cannot be had, so that nothing can be compared."""
    try:
        return images.grid(scan)
    except (ServerError, ImageError) as error:
        logger.warning("a label is read without comparing it with its image: %s", type(error).__name__)
        return None


def require_fit(label: Grid, image: Grid) -> None:
    """Compare a label with its image, as closely as where it was saved.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    if not label.matches(image):
        raise LabelGeometryError(
            f"the image changed after this label. {differences(label, image)}",
            hint="segment the image as it is now; the label stays in XNAT",
        )


def require_fit_of_file(path: Path, image: Grid) -> None:
    """Compare a label map on this machine (NIfTI) with its image; what is no NIfTI file is not compared.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    label = grid_of_file(path)
    if label is not None:
        require_fit(label, image)


def require_fit_of_description(description: Mapping[str, Any], image: Grid) -> None:
    """Compare the geometry in a label's description with its image; one without geometry is not compared.

    It may also be what another program, or an earlier version, understood of the image's file.

    Raises
    ------
    LabelGeometryError
        If they differ in shape or affine.
    """
    geometry = description.get("geometry")
    if not isinstance(geometry, Mapping):
        return
    try:
        label = Grid(
            tuple(int(size) for size in geometry["shape"]),
            np.asarray(geometry["affine"], dtype=np.float64).reshape(4, 4),
        )
    except (KeyError, TypeError, ValueError):
        return
    if not image.is_other_form(label):
        require_fit(label, image)


def grid_of_file(path: Path) -> Grid | None:
    """Return the grid of a label map on this machine; None if it is no NIfTI file."""
    try:
        return Grid.of_nifti(path)
    except ValueError:
        return None


def mark_of(grid: Grid) -> str:
    """Return a short text that differs for another grid, fit for a file name."""
    text = f"{grid.shape} {np.round(grid.affine, 4).tolist()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]
