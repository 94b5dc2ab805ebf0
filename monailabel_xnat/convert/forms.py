"""Where a NIfTI header says that its voxels lie: two forms, a unit, and how programs read them.

A header may state one affine in the sform, another in the qform, or none. nibabel takes the sform, ITK mostly the
qform. ITK scales by the unit (metres, microns), nibabel does not. Here one affine is chosen, always in mm: the sform,
or else the qform, or else nibabel's base affine. A form that cannot be used (not finite, or flat) is ignored. The other
affines are kept, because other programs may have used them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel import quaternions

from monailabel_xnat.convert.geometry import Floats, has_possible_sizes, is_possible, voxel_spacing

# nibabel's quaternions have no type hints.
_quaternions: Any = quaternions

MILLIMETRES = 2
SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT: coordinates of the scanner, like those of DICOM."""

_UNITS = {1: 1000.0, 3: 0.001}
"""The length in mm of the other units, metre and micron. All programs take an unknown unit for mm."""
_FLATTEST = 1e-3
"""Smallest volume that the three axes of an affine, scaled to length 1, may span."""


@dataclass(frozen=True, eq=False)
class Forms:
    """What a header says about the place of its voxels.

    Parameters
    ----------
    dimensions : int
        Number of dimensions of the image.
    shape : tuple of int
        Sizes (i, j, k).
    sizes : ndarray (3,)
        Voxel sizes as stated, in the header's unit. Along an axis of one voxel without a stated size, it is 1.
    unit : float
        Length of the header's unit, mm.
    sform, qform : ndarray (4, 4) or None
        Voxel index to RAS, in the header's unit; None if the header does not state it.
    sform_code : int
        The code of the sform: 1 is the scanner's space. ITK prefers an sform with this code.
    """

    dimensions: int
    shape: tuple[int, int, int]
    sizes: Floats
    unit: float
    sform: Floats | None
    qform: Floats | None
    sform_code: int

    def chosen(self) -> tuple[Floats, str]:
        """Return the affine that counts, and a note on what is unusual about it.

        Returns
        -------
        ndarray (4, 4), float64
            Voxel index to RAS, mm.
        str
            The note; "" if nothing is unusual.

        Raises
        ------
        ValueError
            If no form can be used, and the voxel sizes neither.
        """
        broken: list[str] = []
        for name, form in (("sform", self.sform), ("qform", self.qform)):
            if form is not None and _is_usable(form):
                return self._in_mm(form), self._remark(broken, name)
            if form is not None:
                broken.append(name)
        if not has_possible_sizes(self.sizes):
            raise ValueError(f"its header does not say how large its voxels are: {self.sizes.tolist()}")
        return self._in_mm(self._base()), self._remark(broken, "")

    def others(self) -> list[Floats]:
        """Return all affines (voxel index to RAS) that programs may read from this header, the chosen one included."""
        found = [form for form in (self.sform, self.qform) if form is not None and _is_usable(form)]
        if has_possible_sizes(self.sizes):
            if not found:
                found = [self._base(), np.diag([*self.sizes, 1.0])]
            # ITK takes the directions of the sform and the sizes of the header.
            scaled = found[0].copy()
            scaled[:3, :3] *= self.sizes / voxel_spacing(scaled)
            found.append(scaled)
        if self.dimensions < 3:
            found += [_flat(form) for form in found]
        return [affine for form in found for affine in ([form, self._in_mm(form)] if self.unit != 1.0 else [form])]

    def _in_mm(self, form: Floats) -> Floats:
        return np.asarray(np.diag([self.unit, self.unit, self.unit, 1.0]) @ form)

    def _base(self) -> Floats:
        """Return the affine that nibabel uses without forms: x runs to the left, and the image's centre is at 0."""
        affine: Floats = np.diag([-self.sizes[0], self.sizes[1], self.sizes[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(self.shape) - 1) / 2.0)
        return affine

    def _remark(self, broken: list[str], taken: str) -> str:
        said = [f"the {name} of its header is unusable" for name in broken]
        if not taken:
            said.append("its header does not say where the voxels lie; they are placed as nibabel does it")
        if self.unit != 1.0:
            said.append(f"its header is in units of {self.unit:g} mm")
        return "; ".join(said)


def parse_forms(header: Any) -> Forms:
    """Return the forms of a NIfTI header, as nibabel holds it."""
    dimensions = int(header["dim"][0])
    i, j, k = (*(int(size) for size in header["dim"][1 : dimensions + 1]), 1, 1, 1)[:3]
    shape = i, j, k
    sizes = np.abs(header["pixdim"][1:4].astype(np.float64))
    for axis in range(3):
        # An axis of only one voxel may lack a size; ITK takes 1 for it.
        if shape[axis] == 1 and not sizes[axis] > 0:
            sizes[axis] = 1.0
    sform = qform = None
    if header["sform_code"] > 0:
        sform = np.asarray(header.get_sform(), dtype=np.float64)
    if header["qform_code"] > 0:
        # nibabel's own get_qform refuses headers that ITK reads: quaternions that are a little too long, missing sizes.
        turn = np.array([float(header[f"quatern_{part}"]) for part in "bcd"])
        qform = np.full((4, 4), np.nan)
        if np.isfinite(turn).all():
            qform = np.eye(4)
            qform[:3, :3] = _quaternions.quat2mat([math.sqrt(max(0.0, 1.0 - float(turn @ turn))), *turn]) * sizes
            qform[:3, 2] *= -1.0 if header["pixdim"][0] < 0 else 1.0
            qform[:3, 3] = [float(header[f"qoffset_{part}"]) for part in "xyz"]
    unit = _UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    return Forms(dimensions, shape, sizes, unit, sform, qform, int(header["sform_code"]))


def set_affine(header: Any, affine: Floats) -> None:
    """Write an affine (to RAS, mm) into both forms of a NIfTI header, with voxel sizes and unit.

    A header of fewer than 3 dimensions gets further dimensions of size 1.
    """
    dimensions = int(header["dim"][0])
    if dimensions < 3:
        header["dim"][dimensions + 1 :] = 1
        header["dim"][0] = 3
    header.set_qform(affine, SCANNER)
    header.set_sform(affine, SCANNER)
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | MILLIMETRES


def without_shear(affine: Floats, shape: tuple[int, ...]) -> Floats:
    """Return the nearest affine whose axes are at right angles; the centre of the image stays where it is."""
    spacing = voxel_spacing(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    centre = (np.array(shape[:3]) - 1) / 2.0
    straight[:3, 3] += (affine[:3, :3] - straight[:3, :3]) @ centre
    return np.asarray(straight)


def shear_of(affine: Floats) -> float:
    """Return the largest difference of the angles between the axes of an affine from right angles, in degrees."""
    axes = affine[:3, :3] / voxel_spacing(affine)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(1.0, cosines))))


def _is_usable(form: Floats) -> bool:
    return is_possible(form) and abs(float(np.linalg.det(form[:3, :3] / voxel_spacing(form)))) > _FLATTEST


def _flat(form: Floats) -> Floats:
    """Return the affine as a program reads it that knows only two dimensions."""
    flat: Floats = np.eye(4)
    flat[:2, :2], flat[:2, 3] = form[:2, :2], form[:2, 3]
    return flat
