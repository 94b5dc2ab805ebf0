"""The voxel grid of an image. A label map must lie on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from monailabel_xnat.convert.geometry import LPS_TO_RAS, Floats, axis_codes, voxel_spacing
from monailabel_xnat.convert.itk import read_itk_geometry
from monailabel_xnat.convert.nifti import read_nifti_header

GRID_TOLERANCE = 0.1
"""Two grids are the same if no voxel of one is farther than this from the same voxel of the other, as a share of the
smallest voxel size. Rounding (float32 headers, decimal strings) moves voxels by some thousandths of this."""


PLANE_TOLERANCE = 0.25
"""How far the pixels of a frame may lie from voxel centres along each axis, in voxels. A slice may lie beside the
straight line through the slices by a fifth of a pixel (`LATERAL_TOLERANCE`), and a frame that copies the position of
that slice does so too. At half a voxel it would be unclear which voxel is meant."""


Sources = Mapping[tuple[str, int], int]
"""The slice that each image became, by the image's SOP Instance UID and frame number (from 1)."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxels in patient space.

    Parameters
    ----------
    shape : tuple of int
        Sizes (i, j, k).
    affine : ndarray (4, 4), float64
        Voxel index to RAS, mm.
    sources : callable
        Returns which images the slices along the third axis were made of; empty where that is not known. It may have
        to read these images, so it is called only for labels that refer to images.
    others : tuple of ndarray (4, 4)
        Affines (voxel index to RAS) that other programs may have found in the file of the image instead. A label that
        lies on one of them has the same voxel indices as the image.
    shear : ndarray (3,) or None
        For a stack from a tilted gantry: how much further (RAS, mm) each slice truly lies beside its place on the grid
        than the slice before. None if all slices lie where the grid says.
    """

    shape: tuple[int, ...]
    affine: Floats
    sources: Callable[[], Sources] = dict
    others: tuple[Floats, ...] = ()
    shear: Floats | None = None

    @classmethod
    def of_nifti(cls, path: Path) -> Grid:
        """Return the grid of a NIfTI file, read from its header; for a 4-D image, its three dimensions in space.

        Raises
        ------
        ValueError
            If the file is no NIfTI-1 file.
        """
        header = read_nifti_header(path)
        return cls((*header.shape, 1, 1)[:3], header.affine)

    @classmethod
    def of_image(cls, path: Path) -> Grid:
        """Return the grid of an image file of any format that SimpleITK reads (NIfTI, NRRD, MetaImage, ...).

        Raises
        ------
        ValueError
            If the file cannot be read.
        """
        if path.name.lower().endswith((".nii", ".nii.gz")):
            return cls.of_nifti(path)
        return cls(*read_itk_geometry(path))

    def corners(self) -> Floats:
        """Return the centres of the eight corner voxels (8, 3), RAS, mm."""
        ends = np.array(list(product(*((0, size - 1) for size in self.shape))), dtype=np.float64)
        return np.asarray(ends @ self.affine[:3, :3].T + self.affine[:3, 3], dtype=np.float64)

    def offset_from(self, other: Grid) -> float:
        """Return the largest distance (mm) between voxels of equal index; infinite if the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def matches(self, other: Grid, tolerance: float = GRID_TOLERANCE) -> bool:
        """Return whether two grids have the same shape and put each voxel at the same place.

        Parameters
        ----------
        other : Grid
            The grid to compare with.
        tolerance : float
            Largest distance between voxels of equal index, as a share of the smallest voxel size.
        """
        smallest = min(voxel_spacing(self.affine).min(), voxel_spacing(other.affine).min())
        return self.offset_from(other) <= tolerance * float(smallest)

    def is_other_form(self, label: Grid, tolerance: float = GRID_TOLERANCE) -> bool:
        """Return whether a label lies on one of `others`, and so fits this grid voxel by voxel, but not on this grid.

        Parameters
        ----------
        label : Grid
            The grid of the label.
        tolerance : float
            Largest distance between voxels of equal index, as a share of the smallest voxel size.
        """
        if label.matches(self, tolerance):
            return False
        return any(label.matches(Grid(self.shape, affine), tolerance) for affine in self.others)

    def voxels_of(self, points: Floats) -> Floats:
        """Return the voxel indices (n, 3) of points in the patient (n, 3), LPS, mm.

        In a stack from a tilted gantry, a point gets the indices in its nearest slice, at the slice's true place.
        """
        to_voxels = np.linalg.inv(LPS_TO_RAS @ self.affine)
        voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        if self.shear is not None:
            beside = to_voxels[:3, :3] @ LPS_TO_RAS[:3, :3] @ self.shear
            voxels = voxels - np.outer(np.rint(voxels[:, 2]), beside)
        return np.asarray(voxels, dtype=np.float64)

    def place_of_slice(self, number: int) -> Floats:
        """Return the true position (3,) of the first voxel of a slice, LPS, mm."""
        place = self.affine[:3] @ (0, 0, number, 1)
        if self.shear is not None:
            place = place + number * self.shear
        return np.asarray(LPS_TO_RAS[:3, :3] @ place, dtype=np.float64)

    def __str__(self) -> str:
        shape = " x ".join(str(size) for size in self.shape)
        spacing = " x ".join(f"{size:.4g}" for size in voxel_spacing(self.affine))
        origin = ", ".join(f"{value:.3f}" for value in self.affine[:3, 3])
        return f"{shape} voxels of {spacing} mm, origin ({origin}) mm RAS, axes to {axis_codes(self.affine)}"
