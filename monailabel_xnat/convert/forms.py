"""Where a NIfTI header says that its voxels lie: two forms, a unit, and what readers make of them.

A header may state an affine in the sform, another in the qform, or none. nibabel takes the sform, ITK mostly the
qform, ITK scales by the unit (metres, microns) and nibabel does not. Here one affine is chosen: the sform, without it
the qform, without both nibabel's base affine; always in mm. A form that cannot be used (not finite, flat) does not
count. The other ones are kept as what other programs may have understood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel import quaternions

from monailabel_xnat.convert.geometry import Floats, has_possible_sizes, is_possible, voxel_spacing

# It has no type hints.
_quaternions: Any = quaternions

MILLIMETRES = 2
SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT: coordinates of the scanner, as DICOM's are."""

_UNITS = {1: 1000.0, 3: 0.001}
"""How many mm the units of length are that are not mm: metre and micron. Unknown units count as mm everywhere."""
_FLATTEST = 1e-3
"""Smallest volume that three axes of unit length may span."""


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
        Voxel sizes as stated, in the header's unit; those of missing dimensions are 1 unless they are stated.
    unit : float
        Length of the header's unit, mm.
    sform, qform : ndarray (4, 4) or None
        Voxel index to RAS, in the header's unit; None if the header does not state it.
    sform_code : int
        What the sform is: 1 is the scanner's space, which ITK prefers.
    """

    dimensions: int
    shape: tuple[int, int, int]
    sizes: Floats
    unit: float
    sform: Floats | None
    qform: Floats | None
    sform_code: int

    def chosen(self) -> tuple[Floats, str]:
        """Return the affine, voxel index to RAS in mm, and a note on what is odd about it; "" for nothing.

        Raises
        ------
        ValueError
            If nothing in the header can be used.
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
        """Return the affines (to RAS) that programs may have understood, apart from how they differ from the chosen."""
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
        """Return nibabel's affine of last resort: x runs to the left, and the centre of the image is 0."""
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
        # What is only one voxel deep need not say how deep; ITK takes 1.
        if shape[axis] == 1 and not sizes[axis] > 0:
            sizes[axis] = 1.0
    sform = qform = None
    if header["sform_code"] > 0:
        sform = np.asarray(header.get_sform(), dtype=np.float64)
    if header["qform_code"] > 0:
        # nibabel's own get_qform refuses what ITK reads: quaternions that are a little too long, missing sizes.
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
    """Write an affine (to RAS, mm) into both forms of a NIfTI header, with voxel sizes and unit; in 3 dimensions."""
    dimensions = int(header["dim"][0])
    if dimensions < 3:
        header["dim"][dimensions + 1 :] = 1
        header["dim"][0] = 3
    header.set_qform(affine, SCANNER)
    header.set_sform(affine, SCANNER)
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | MILLIMETRES


def without_shear(affine: Floats, shape: tuple[int, ...]) -> Floats:
    """Return the affine with axes at right angles that is nearest to one, about the centre of the image."""
    spacing = voxel_spacing(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    centre = (np.array(shape[:3]) - 1) / 2.0
    straight[:3, 3] += (affine[:3, :3] - straight[:3, :3]) @ centre
    return np.asarray(straight)


def shear_of(affine: Floats) -> float:
    """Return by how many degrees the axes of an affine differ from right angles, at most."""
    axes = affine[:3, :3] / voxel_spacing(affine)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(1.0, cosines))))


def _is_usable(form: Floats) -> bool:
    return is_possible(form) and abs(float(np.linalg.det(form[:3, :3] / voxel_spacing(form)))) > _FLATTEST


def _flat(form: Floats) -> Floats:
    """Return the affine that a reader of two dimensions makes: it knows no third one."""
    flat: Floats = np.eye(4)
    flat[:2, :2], flat[:2, 3] = form[:2, :2], form[:2, 3]
    return flat
