"""Writes NIfTI-1 files whose headers say what a test wants, also nonsense, and reads files as every reader does."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS = np.array([[2, 0, 0, -20], [0, 2.5, 0, -30], [0, 0, 3, -40], [0, 0, 0, 1.0]])
LAS = np.diag([-1.0, 1.0, 1.0, 1.0]) @ RAS
SHAPE = (10, 12, 6)


def turned(affine: np.ndarray, *degrees: float) -> np.ndarray:
    """Return an affine that is turned about x, y and z."""
    turn = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        step, (one, two) = np.eye(4), ((axis + 1) % 3, (axis + 2) % 3)
        step[one, one] = step[two, two] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn @ affine


def write(path, shape=SHAPE, sform=None, sform_code=0, qform=None, qform_code=0, units=2, pixdim=None, dtype=np.int16):
    """Write a NIfTI-1 file with numbered voxels. It is compressed if its name says so."""
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    plain = Path(path).with_name("plain.nii")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), plain)
    data = bytearray(plain.read_bytes())
    plain.unlink()
    rotation = nibabel.Nifti1Header()
    stated = qform if qform is not None else sform
    sizes = [1.0, 1.0, 1.0]
    if stated is not None and np.isfinite(stated).all():
        sizes = np.linalg.norm(stated[:3, :3], axis=0)
    if qform is not None:
        rotation.set_qform(qform, 1)
    handedness = float(rotation["pixdim"][0]) if qform is not None else 1.0
    struct.pack_into("<4f", data, 76, handedness, *(sizes if pixdim is None else pixdim))
    data[123] = units
    struct.pack_into("<2h", data, 252, qform_code, sform_code)
    parts = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    struct.pack_into("<6f", data, 256, *(float(rotation[part]) for part in parts))
    if sform is not None:
        struct.pack_into("<12f", data, 280, *sform[:3].ravel())
    if str(path).endswith(".gz"):
        import gzip

        data = gzip.compress(bytes(data))
    Path(path).write_bytes(data)
    return values


def affines(path: Path) -> dict[str, np.ndarray]:
    """Return the affines (voxel index to RAS in mm) that each reader finds in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai = pytest.importorskip("monai.data.image_reader")
        image = SimpleITK.ReadImage(str(path))
        size = image.GetDimension()
        plain = np.eye(4)
        plain[:3, :3] = np.reshape(image.GetDirection(), (size, size))[:3, :3] * image.GetSpacing()[:3]
        plain[:3, 3] = image.GetOrigin()[:3]
        found = {"SimpleITK": LPS @ plain}
        readers = [monai.ITKReader]
        if path.name.endswith((".nii", ".nii.gz")):
            found["nibabel"] = nibabel.load(path).affine
            if nibabel.load(path).header["qform_code"] > 0:
                found["qform"] = nibabel.load(path).get_qform()
            readers.append(monai.NibabelReader)
        for reader in readers:
            loader = reader()
            found[reader.__name__] = np.asarray(loader.get_data(loader.read(str(path)))[1]["affine"])
    return found
