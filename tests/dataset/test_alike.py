"""Images stored as files are handed out in a form in which every reader puts image and label at the same place."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from nifti_headers import LAS, RAS, SHAPE, affines, turned, write

from monailabel_xnat.errors import ImageError, LabelGeometryError

SHEARED = RAS.copy()
SHEARED[0, 1] = 1.0
SLIGHTLY = RAS.copy()
SLIGHTLY[0, 1] = 0.005
BROKEN = np.full((4, 4), np.nan)

TWO_MEANINGS = {
    "sform RAS 2, qform LAS 1": {"sform": RAS, "sform_code": 2, "qform": LAS, "qform_code": 1},
    "sform RAS 4, qform LAS 1": {"sform": RAS, "sform_code": 4, "qform": LAS, "qform_code": 1},
    "sform RAS 1, qform LAS 2": {"sform": RAS, "sform_code": 1, "qform": LAS, "qform_code": 2},
    "oblique": {"sform": turned(RAS, 20, 10, 5), "sform_code": 2, "qform": turned(RAS, 0, 10, 5), "qform_code": 1},
    "no forms": {"pixdim": (2, 2.5, 3)},
    "microns": {"sform": RAS * 1000, "sform_code": 1, "qform": RAS * 1000, "qform_code": 1, "units": 3},
    "metres": {"qform": np.diag([0.001, 0.001, 0.001, 1]) @ RAS, "qform_code": 1, "units": 1},
    "two-dimensional": {"shape": SHAPE[:2], "sform": RAS, "sform_code": 2, "pixdim": (2, 2.5, 5)},
    "two-dimensional without forms": {"shape": SHAPE[:2], "pixdim": (2, 2.5, 0)},
    "sform of NaN": {"sform": BROKEN, "sform_code": 1, "qform": RAS, "qform_code": 1},
    "sform of 0": {"sform": np.zeros((4, 4)), "sform_code": 1, "qform": RAS, "qform_code": 1},
    "nothing but NaN": {"sform": BROKEN, "sform_code": 1, "pixdim": (2, 2.5, 3)},
    "slightly sheared": {"sform": SLIGHTLY, "sform_code": 1},
    "other sizes": {"sform": RAS, "sform_code": 2, "pixdim": (1, 1, 1)},
    "4-D": {"shape": (*SHAPE, 2), "sform": RAS, "sform_code": 2, "qform": LAS, "qform_code": 1},
}
ONE_MEANING = {
    "nibabel's": {"sform": turned(RAS, 20, 10, 5), "sform_code": 2},
    "qform alone": {"qform": turned(LAS, 20, 10, 5), "qform_code": 1},
    "both": {"sform": RAS, "sform_code": 1, "qform": RAS, "qform_code": 1},
    "both, other codes": {
        "sform": turned(RAS, 1, 2, 3),
        "sform_code": 4,
        "qform": turned(RAS, 1, 2, 3),
        "qform_code": 2,
    },
}


@pytest.fixture
def datastore(xnat_sandbox, open_xnat_datastore):
    login = (xnat_sandbox.username, xnat_sandbox.password)
    requests.put(f"{xnat_sandbox.url}/data/projects/P", auth=login, timeout=30).raise_for_status()
    return open_xnat_datastore(project="P")


def mask_of(shape, seed=0):
    mask = np.zeros((*shape, 1, 1)[:3], np.uint8)
    mask[1:4, 2:7, : max(1, shape[2] // 2) if len(shape) > 2 else 1] = 1
    mask[0, 0, 0] = 2
    return mask


def save(path, mask, affine):
    image = nibabel.Nifti1Image(mask, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nibabel.save(image, path)
    return str(path)


def assert_alike(pair, mask):
    """Check that every reader puts image and label at one place, and that the label is the mask, voxel by voxel."""
    image, label = affines(Path(pair["image"])), affines(Path(pair["label"]))
    expected = next(iter(image.values()))
    for found in (image, label):
        for reader, affine in found.items():
            np.testing.assert_allclose(affine, expected, rtol=0, atol=1e-3, err_msg=reader)
    assert nibabel.load(pair["image"]).shape[:3] == mask.shape
    np.testing.assert_array_equal(np.asarray(nibabel.load(pair["label"]).dataobj), mask)


@pytest.mark.parametrize("form", ["as handed out", "nibabel's", "ITK's"])
@pytest.mark.parametrize("kind", TWO_MEANINGS)
def test_a_header_of_two_meanings_is_handed_out_with_one(datastore, tmp_path, kind, form):
    stored = tmp_path / "image.nii.gz"
    values = write(stored, **TWO_MEANINGS[kind])
    image = datastore.add_image("case", str(stored), {})
    path = Path(datastore.get_image_uri(image))
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj).ravel(), values.ravel())
    header = nibabel.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    mask = mask_of(values.shape[:3])
    affine = nibabel.load(path).affine
    if form == "nibabel's" and "NaN" not in kind and "of 0" not in kind:
        affine = nibabel.load(stored).affine
    elif form == "ITK's" and "NaN" not in kind and kind not in ("sform of 0", "slightly sheared"):
        given = SimpleITK.ReadImage(str(stored))
        size = min(3, given.GetDimension())
        affine = np.eye(4)
        direction = np.reshape(given.GetDirection(), (given.GetDimension(),) * 2)[:size, :size]
        affine[:size, :size] = direction * given.GetSpacing()[:size]
        affine[:size, 3] = given.GetOrigin()[:size]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask, affine), "final", {})
    (pair,) = datastore.datalist()
    assert_alike(pair, mask)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("kind", ONE_MEANING)
def test_a_header_of_one_meaning_is_handed_out_as_it_is(datastore, tmp_path, kind, name):
    values = write(tmp_path / name, **ONE_MEANING[kind])
    image = datastore.add_image("case", str(tmp_path / name), {})
    path = Path(datastore.get_image_uri(image))
    assert path.read_bytes() == (tmp_path / name).read_bytes()
    mask = mask_of(values.shape)
    datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask, nibabel.load(path).affine), "final", {})
    (pair,) = datastore.datalist()
    assert_alike(pair, mask)
    assert "image_notes" not in datastore.status()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ({"sform": SHEARED, "sform_code": 1}, "not at right angles: sheared by 21.80 degrees"),
        ({"sform": SHEARED, "sform_code": 1, "qform": RAS, "qform_code": 1}, "not at right angles"),
        ({"pixdim": (2, 2.5, 0)}, "does not say how large its voxels are"),
        ({"sform": np.zeros((4, 4)), "sform_code": 1, "pixdim": (2, float("nan"), 3)}, "how large its voxels are"),
    ],
    ids=["sheared", "sheared with a qform", "size 0", "size NaN"],
)
def test_a_header_that_cannot_be_placed_is_refused(datastore, tmp_path, kind, named):
    write(tmp_path / "image.nii.gz", **kind)
    # An image that no reader could place is refused before it is stored, the others when they are requested.
    with pytest.raises(ImageError, match=named) as caught:
        datastore.get_image_uri(datastore.add_image("case", str(tmp_path / "image.nii.gz"), {}))
    assert caught.value.hint


def descriptions(sandbox, image):
    """Return every description of a final label in XNAT."""
    _, _, experiment, scan = image.split("/")
    address = f"{sandbox.url}/data/experiments/{experiment}/scans/{scan}/resources/MONAILABEL_final/files"
    login = (sandbox.username, sandbox.password)
    rows = requests.get(address, params={"format": "json"}, auth=login, timeout=30).json()["ResultSet"]["Result"]
    names = [row["Name"] for row in rows if row["Name"].endswith(".json")]
    return [requests.get(f"{address}/{name}", auth=login, timeout=30).json() for name in names]


def test_a_label_on_the_other_form_is_noted(xnat_sandbox, datastore, tmp_path):
    values = write(tmp_path / "image.nii.gz", **TWO_MEANINGS["sform RAS 2, qform LAS 1"])
    image = datastore.add_image("case", str(tmp_path / "image.nii.gz"), {})
    datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask_of(values.shape), LAS), "final", {})
    (described,) = descriptions(xnat_sandbox, image)
    assert any("another form of the image's header" in note for note in described["notes"])
    assert "sform and qform" in datastore.status()["image_notes"][image]


def test_a_label_that_may_have_been_turned_to_ras_is_refused(datastore, tmp_path):
    """The image is LAS by its sform; its qform is RAS and covers the same place, where a turned label lies too."""
    other = LAS @ np.diag([-1.0, 1.0, 1.0, 1.0])
    other[0, 3] = LAS[0, 3] + LAS[0, 0] * (SHAPE[0] - 1)
    values = write(tmp_path / "image.nii.gz", sform=LAS, sform_code=2, qform=other, qform_code=1)
    image = datastore.add_image("case", str(tmp_path / "image.nii.gz"), {})
    with pytest.raises(LabelGeometryError, match="can be meant in two ways"):
        datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask_of(values.shape), other), "final", {})


def test_a_label_without_a_place_is_still_refused(datastore, tmp_path):
    values = write(tmp_path / "image.nii.gz", **ONE_MEANING["nibabel's"])
    image = datastore.add_image("case", str(tmp_path / "image.nii.gz"), {})
    with pytest.raises(LabelGeometryError):
        datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask_of(values.shape), np.eye(4)), "final", {})


@pytest.mark.parametrize(
    ("kind", "affine"),
    [
        ("no forms", np.diag([2, 2.5, 3, 1.0])),
        ("microns", RAS * [[1000], [1000], [1000], [1]]),
        ("sform RAS 2, qform LAS 1", LAS),
        ("sform of 0", RAS),
    ],
)
def test_a_label_stored_by_an_earlier_version_comes_out_on_the_grid_of_the_image(
    xnat_sandbox, datastore, tmp_path, kind, affine
):
    values = write(tmp_path / "image.nii.gz", **TWO_MEANINGS[kind])
    image = datastore.add_image("case", str(tmp_path / "image.nii.gz"), {})
    mask = mask_of(values.shape)
    handed_out = nibabel.load(datastore.get_image_uri(image)).affine
    datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask, handed_out), "final", {})
    (described,) = descriptions(xnat_sandbox, image)
    content = Path(save(tmp_path / "mask.nii.gz", mask, affine)).read_bytes()
    described["sha256"] = digest = hashlib.sha256(content).hexdigest()
    described["geometry"]["affine"] = np.asarray(affine, float).tolist()
    _, _, experiment, scan = image.split("/")
    address = f"{xnat_sandbox.url}/data/experiments/{experiment}/scans/{scan}/resources/MONAILABEL_final"
    login = (xnat_sandbox.username, xnat_sandbox.password)
    name = f"20990101T000000000000Z-{digest[:12]}"
    for suffix, data in ((".nii.gz", content), (".json", json.dumps(described).encode())):
        query = {"inbody": "true"}
        url = f"{address}/files/{name}{suffix}"
        requests.put(url, params=query, data=data, auth=login, timeout=30).raise_for_status()
    datastore.refresh()
    (pair,) = datastore.datalist()
    assert_alike(pair, mask)


def test_a_mounted_file_is_not_touched(xnat_sandbox, open_xnat_datastore, datastore, tmp_path):
    stored = tmp_path / "mount" / "P" / "arc001" / "e1" / "SCANS" / "1" / "NIFTI" / "image.nii"
    stored.parent.mkdir(parents=True)
    write(stored, **TWO_MEANINGS["sform RAS 2, qform LAS 1"])
    before = stored.read_bytes()
    stored.chmod(0o400)
    image = upload(xnat_sandbox, datastore, [stored])
    xnat_sandbox.requests.clear()
    mounted = open_xnat_datastore(project="P", asset_path=str(tmp_path / "mount"), cache_path=tmp_path / "other")
    path = Path(mounted.get_image_uri(image))
    assert not any(request.path.endswith("image.nii") for request in xnat_sandbox.requests)
    assert not path.is_symlink()
    assert stored.read_bytes() == before
    np.testing.assert_allclose(SimpleITK.ReadImage(str(path)).GetDirection()[0], -1.0)


@pytest.mark.parametrize("kind", ["Analyze", "NIfTI in two files", "NIfTI-2", "NRRD RAS", "NRRD LAS", "NRRD", "MHA 2D"])
def test_other_files_are_handed_out_so_that_all_readers_agree(xnat_sandbox, datastore, tmp_path, kind):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    if kind == "Analyze":
        nibabel.save(nibabel.AnalyzeImage(values, RAS), tmp_path / "i.img")
    elif kind == "NIfTI in two files":
        nibabel.save(nibabel.Nifti1Pair(values, RAS), tmp_path / "i.hdr")
    elif kind == "NIfTI-2":
        nibabel.save(nibabel.Nifti2Image(values, RAS), tmp_path / "i.nii.gz")
    elif kind == "MHA 2D":
        values = values[:, :, :1]
        flat = SimpleITK.GetImageFromArray(values[:, :, 0].T)
        flat.SetSpacing((2, 3))
        SimpleITK.WriteImage(flat, str(tmp_path / "i.mha"))
    else:
        space = {"RAS": "right-anterior-superior", "LAS": "left-anterior-superior"}.get(kind[5:], "")
        header = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {' '.join(map(str, SHAPE))}\nencoding: raw\nendian: little\n"
        )
        header += f"space: {space}\n" if space else "space dimension: 3\n"
        header += "space directions: (2,0,0) (0,2.5,0) (0,0,3)\nspace origin: (-20,-30,-40)\n\n"
        (tmp_path / "i.nrrd").write_bytes(header.encode() + values.tobytes("F"))
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file())
    image = upload(xnat_sandbox, datastore, paths)
    path = Path(datastore.get_image_uri(image))
    assert path.name.endswith((".nii", ".nii.gz"))
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), values)
    mask = mask_of(values.shape)
    datastore.save_label(image, save(tmp_path / "mask.nii.gz", mask, nibabel.load(path).affine), "final", {})
    (pair,) = datastore.datalist()
    assert_alike(pair, mask)
    if kind.startswith("NRRD "):
        expected = RAS if kind == "NRRD RAS" else np.diag([-1.0, 1.0, 1.0, 1.0]) @ RAS
        np.testing.assert_allclose(nibabel.load(path).affine, expected, atol=1e-5)


def upload(sandbox, datastore, paths):
    """Store files as the image of a new scan, as people do who have a pair of header and voxels."""
    login = (sandbox.username, sandbox.password)
    base = f"{sandbox.url}/data/projects/P/subjects/s1"
    for address, query in (
        (base, {}),
        (f"{base}/experiments/e1", {"xsiType": "xnat:mrSessionData"}),
        (f"{base}/experiments/e1/scans/1", {"xsiType": "xnat:mrScanData", "xnat:mrScanData/type": "T1"}),
        (f"{base}/experiments/e1/scans/1/resources/NIFTI", {}),
    ):
        requests.put(address, params=query, auth=login, timeout=30).raise_for_status()
    for path in paths:
        address = f"{base}/experiments/e1/scans/1/resources/NIFTI/files/{path.name}"
        answer = requests.put(address, params={"inbody": "true"}, data=path.read_bytes(), auth=login, timeout=30)
        answer.raise_for_status()
    datastore.refresh()
    (image,) = datastore.list_images()
    return image
