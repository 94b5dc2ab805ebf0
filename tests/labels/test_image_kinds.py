"""Images of every kind can be labelled, with a label that is saved on the file that was handed out."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import requests
from label_archive import AFFINE, SHAPE

from monailabel_xnat.images import Images

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
VALUES = np.arange(210, dtype=np.int16).reshape(SHAPE)


def pair(folder, values=VALUES, gz=False):
    nibabel.save(nibabel.Nifti1Pair(values, AFFINE), folder / "image.hdr")
    files = {f"image.{end}": (folder / f"image.{end}").read_bytes() for end in ("hdr", "img")}
    return {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in files.items()} if gz else files


def colours():
    return np.zeros(SHAPE, RGB)


KINDS = {
    "NIfTI-2": lambda _: {"image.nii": nibabel.Nifti2Image(VALUES, AFFINE).to_bytes()},
    "RGB": lambda _: {"image.nii": nibabel.Nifti1Image(colours(), AFFINE).to_bytes()},
    "complex": lambda _: {"image.nii": nibabel.Nifti1Image(VALUES.astype(np.complex64), AFFINE).to_bytes()},
    "a pair": pair,
    "a compressed pair": lambda folder: pair(folder, gz=True),
    "what macOS leaves": lambda _: {
        "image.nii": nibabel.Nifti1Image(VALUES, AFFINE).to_bytes(),
        "._image.nii": b"\0\5\x16\7" + bytes(300),
        "__MACOSX/image.nii": b"\0\5\x16\7" + bytes(300),
    },
    "segmentations beside it": lambda _: {
        "ct.nii": nibabel.Nifti1Image(VALUES, AFFINE).to_bytes(),
        "segmentations/liver.nii": nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE).to_bytes(),
        "segmentations/spleen.nii": nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE).to_bytes(),
    },
}


def opened_on(sandbox, open_labels, project, files):
    """Return labels of a project whose first scan holds these files instead of its image."""
    opened = open_labels()
    resource = f"{sandbox.url}{opened.scan.path}/resources/NIFTI"
    with requests.Session() as admin:
        admin.auth = (sandbox.username, sandbox.password)
        admin.delete(f"{resource}/files/image.nii").raise_for_status()
        for name, content in files.items():
            headers = {"Content-Type": "application/octet-stream"}
            admin.put(f"{resource}/files/{name}", data=content, headers=headers).raise_for_status()
    return open_labels("second")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_handed_out_can_be_labelled(sandbox, open_labels, project, tmp_path, kind):
    opened = opened_on(sandbox, open_labels, project, KINDS[kind](tmp_path))
    images = Images(opened.session, opened.settings)
    image = nibabel.load(images.path(opened.scan))
    assert image.shape[:3] == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    if kind != "RGB":
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), VALUES)
    label = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, image.affine), tmp_path / "label.nii.gz")
    opened.store.save(opened.scan, "final", tmp_path / "label.nii.gz", {})
    found = nibabel.load(opened.labels.path(opened.scan, "final"))
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), label)
    images.close()
