"""Where a NIfTI-1 header says that its voxels lie: two forms, a unit, and what readers make of them.

A header may state an affine in the sform, another in the qform, or none. nibabel takes the sform, ITK mostly the
qform, ITK scales by the unit (metres, microns) and nibabel does not. Here one affine is chosen: the sform, without it
the qform, without both nibabel's base affine; always in mm. A form that cannot be used (not finite, flat) does not
count. The other ones are kept as what other programs may have understood.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from monailabel_xnat.convert.geometry import Floats, voxel_spacing

HEADER_SIZE = 348
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
        if not (np.isfinite(self.sizes).all() and self.sizes.min() > 0):
            raise ValueError(f"its header does not say how large its voxels are: {self.sizes.tolist()}")
        return self._in_mm(self._base()), self._remark(broken, "")

    def others(self) -> list[Floats]:
        """Return the affines (to RAS) that programs may have understood, apart from how they differ from the chosen."""
        found = [form for form in (self.sform, self.qform) if form is not None and _is_usable(form)]
        if np.isfinite(self.sizes).all() and self.sizes.min() > 0:
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


def parse_forms(data: bytes, order: str) -> Forms:
    """Read the forms of a NIfTI-1 header.

    Parameters
    ----------
    data : bytes
        The header.
    order : str
        ``<`` or ``>``.
    """
    dim = struct.unpack_from(f"{order}8h", data, 40)
    pixdim = np.array(struct.unpack_from(f"{order}8f", data, 76), dtype=np.float64)
    qform_code, sform_code = struct.unpack_from(f"{order}2h", data, 252)
    dimensions = dim[0]
    shape = (*dim[1 : dimensions + 1], 1, 1, 1)[:3]
    sizes = np.abs(pixdim[1:4])
    for axis in range(3):
        # What is only one voxel deep need not say how deep; ITK takes 1.
        if shape[axis] == 1 and not sizes[axis] > 0:
            sizes[axis] = 1.0
    sform = qform = None
    if sform_code > 0:
        sform = np.eye(4)
        sform[:3] = np.reshape(struct.unpack_from(f"{order}12f", data, 280), (3, 4))
    if qform_code > 0:
        b, c, d, *origin = struct.unpack_from(f"{order}6f", data, 256)
        qform = np.eye(4)
        qform[:3, :3] = _rotation_of(b, c, d) * sizes
        qform[:3, 2] *= -1.0 if pixdim[0] < 0 else 1.0
        qform[:3, 3] = origin
    unit = _UNITS.get(data[123] & 7, 1.0)
    return Forms(dimensions, shape, sizes, unit, sform, qform, sform_code)


def with_affine(data: bytes, order: str, affine: Floats) -> bytes:
    """Return a NIfTI-1 header with one affine (to RAS, mm) in both forms, code 1, and three dimensions at least."""
    header = bytearray(data)
    dim = list(struct.unpack_from(f"{order}8h", data, 40))
    if dim[0] < 3:
        dim = [3, *dim[1 : dim[0] + 1], *[1] * (7 - dim[0])]
        struct.pack_into(f"{order}8h", header, 40, *dim)
    write_forms(header, order, affine)
    header[123] = (header[123] & ~7) | MILLIMETRES
    return bytes(header)


def write_forms(header: bytearray, order: str, affine: Floats) -> None:
    """Write an affine (to RAS, mm) into both forms of a NIfTI-1 header, with the voxel sizes that go with it."""
    quaternion, handedness = quaternion_of(affine)
    struct.pack_into(f"{order}4f", header, 76, handedness, *voxel_spacing(affine))
    struct.pack_into(f"{order}2h", header, 252, SCANNER, SCANNER)
    struct.pack_into(f"{order}6f", header, 256, *quaternion, *affine[:3, 3])
    struct.pack_into(f"{order}12f", header, 280, *affine[:3].ravel())


def quaternion_of(affine: Floats) -> tuple[tuple[float, float, float], float]:
    """Return quaternion (b, c, d) and handedness (1 or -1, NIfTI's qfac) of an affine's rotation."""
    rotation = affine[:3, :3] / voxel_spacing(affine)
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation = rotation * (1.0, 1.0, handedness)
    # The eigenvector method is exact for every rotation, half turns included.
    ((xx, xy, xz), (yx, yy, yz), (zx, zy, zz)) = rotation
    matrix = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, zx + xz],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, zx + xz, zy + yz, zz - xx - yy],
        ]
    )
    values, vectors = np.linalg.eigh(matrix)
    a, b, c, d = vectors[:, int(np.argmax(values))]
    sign = -1.0 if a < 0 else 1.0
    return (float(sign * b), float(sign * c), float(sign * d)), handedness


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
    if not np.isfinite(form).all():
        return False
    spacing = voxel_spacing(form)
    return bool(spacing.min() > 0 and abs(np.linalg.det(form[:3, :3] / spacing)) > _FLATTEST)


def _flat(form: Floats) -> Floats:
    """Return the affine that a reader of two dimensions makes: it knows no third one."""
    flat: Floats = np.eye(4)
    flat[:2, :2], flat[:2, 3] = form[:2, :2], form[:2, 3]
    return flat


def _rotation_of(b: float, c: float, d: float) -> Floats:
    """Return the rotation matrix (3, 3) of a unit quaternion whose first part is left out."""
    if not all(map(math.isfinite, (b, c, d))):
        return np.full((3, 3), np.nan)
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    a, b, c, d = np.array([a, b, c, d]) / math.sqrt(a * a + b * b + c * c + d * d)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
