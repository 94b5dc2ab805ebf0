"""The voxel grid of an image: what a label map must lie on."""

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
"""How far apart any voxel of two grids may lie to count as the same, as a share of the smallest voxel size.
Rounding (float32 headers, decimal strings) moves voxels by some thousandths of this."""


PLANE_TOLERANCE = 0.25
"""How far the pixels of a frame may lie from voxel centres along each axis, in voxels. A slice may lie beside the
straight line by a fifth of a pixel (`LATERAL_TOLERANCE`), which a frame with the position of that slice repeats;
with half a voxel it would be open which one is meant."""


Sources = Mapping[tuple[str, int], int]
"""The slice that each image became, by its SOP Instance UID and the number of its frame, from 1."""


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
        Returns which images the slices along the third axis were made of; none where that is not known. It is called
        only for what refers to images, because it may have to read them.
    others : tuple of ndarray (4, 4)
        Affines that other programs may have found in the file of the image instead: a label that lies on one of them
        belongs to the image voxel by voxel.
    shear : ndarray (3,) or None
        In a stack from a tilted gantry, by how much (RAS, mm) each slice lies further beside its place on the grid than
        the one before; None if slices lie where the grid says.
    """

    shape: tuple[int, ...]
    affine: Floats
    sources: Callable[[], Sources] = dict
    others: tuple[Floats, ...] = ()
    shear: Floats | None = None

    @classmethod
    def of_nifti(cls, path: Path) -> Grid:
        """Read the grid of a NIfTI file from its header alone; of a 4-D image its three dimensions in space.

        Raises
        ------
        ValueError
            If the file is no NIfTI-1 file.
        """
        header = read_nifti_header(path)
        return cls((*header.shape, 1, 1)[:3], header.affine)

    @classmethod
    def of_image(cls, path: Path) -> Grid:
        """Read the grid of an image file of any kind that SimpleITK reads (NIfTI, NRRD, MetaImage, ...).

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
        """Return whether a label lies voxel by voxel on this grid, as another program may have understood the image."""
        if label.matches(self, tolerance):
            return False
        return any(label.matches(Grid(self.shape, affine), tolerance) for affine in self.others)

    def voxels_of(self, points: Floats) -> Floats:
        """Return the voxel indices (n, 3) of points in the patient (n, 3), LPS, mm.

        In a stack from a tilted gantry each point belongs to the slice nearest along the normal, where it truly lies.
        """
        to_voxels = np.linalg.inv(LPS_TO_RAS @ self.affine)
        voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        if self.shear is not None:
            beside = to_voxels[:3, :3] @ LPS_TO_RAS[:3, :3] @ self.shear
            voxels = voxels - np.outer(np.rint(voxels[:, 2]), beside)
        return np.asarray(voxels, dtype=np.float64)

    def place_of_slice(self, number: int) -> Floats:
        """Return where the first voxel of a slice truly lies, LPS, mm."""
        place = self.affine[:3] @ (0, 0, number, 1)
        if self.shear is not None:
            place = place + number * self.shear
        return np.asarray(LPS_TO_RAS[:3, :3] @ place, dtype=np.float64)

    def __str__(self) -> str:
        shape = " x ".join(str(size) for size in self.shape)
        spacing = " x ".join(f"{size:.4g}" for size in voxel_spacing(self.affine))
        origin = ", ".join(f"{value:.3f}" for value in self.affine[:3, 3])
        return f"{shape} voxels of {spacing} mm, origin ({origin}) mm RAS, axes to {axis_codes(self.affine)}"
