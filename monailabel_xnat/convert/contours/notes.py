"""What is noted about structures that were drawn as contours, whatever the format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from monailabel_xnat.convert.contours.polygons import holds_no_pixel
from monailabel_xnat.convert.geometry import Floats


def lost_contours(name: str, contours: Sequence[Floats], shape: tuple[int, int]) -> Iterator[str]:
    """Note how many contours of a structure hold the centre of no voxel."""
    lost = sum(holds_no_pixel(corners, shape) for corners in contours)
    if lost:
        yield f"{name}: {lost} contours lie between the centres of voxels and mark none on their own"


def empty_slices(name: str, slices: Collection[int]) -> Iterator[str]:
    """Note how many slices between those of a structure have no contour."""
    missing = max(slices) - min(slices) + 1 - len(set(slices)) if slices else 0
    if missing:
        yield f"{name}: {missing} slices between its contours have none and stay empty"
