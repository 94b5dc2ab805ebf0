"""Two projects have sessions of one label, with scans of equal number, file names and sizes. One archive is mounted."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import requests
from scan_bench import make_series

from monailabel_xnat.errors import ImageError


def uid_of(series: dict[str, bytes]) -> str:
    return str(pydicom.dcmread(io.BytesIO(next(iter(series.values())))).SeriesInstanceUID)


def another_patient(series: dict[str, bytes]) -> dict[str, bytes]:
    """Return files of another series, with the same names and sizes but other voxels."""
    uid = uid_of(series)
    other = uid[:-4] + ("1234" if uid[-4:] != "1234" else "4321")
    return {name: content[:-240].replace(uid.encode(), other.encode()) + bytes(240) for name, content in series.items()}


class Site:
    """The archive, to which tests write as an administrator does."""

    def __init__(self, sandbox) -> None:
        self.sandbox = sandbox
        self.admin = requests.Session()
        self.admin.auth = (sandbox.username, sandbox.password)

    def put(self, path: str, content: bytes | None = None, **query: str) -> None:
        headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
        self.admin.put(
            f"{self.sandbox.url}/data/{path}", data=content, params=query, headers=headers
        ).raise_for_status()

    def fill(self, project: str, series: dict[str, bytes], label: str = "DICOM", uid: str | None = None) -> None:
        session = f"projects/{project}/subjects/s1/experiments/visit"
        self.put(f"projects/{project}")
        self.put(f"projects/{project}/subjects/s1")
        self.put(session, xsiType="xnat:ctSessionData", date="2026-01-01")
        fields = {"xnat:ctScanData/UID": uid_of(series) if uid is None else uid} if label == "DICOM" else {}
        self.put(f"{session}/scans/1", **{"xsiType": "xnat:ctScanData", "xnat:ctScanData/type": "CT", **fields})
        for name, content in series.items():
            self.put(f"{session}/scans/1/resources/{label}/files/{name}", content)

    def forget_digests(self) -> None:
        """Remove the digests from the archive, as on a site with checksums turned off."""
        with self.sandbox.archive.store.write() as db:
            db.execute("UPDATE files SET digest = ''")

    def archive(self):
        return next(path.parents[1] for path in self.sandbox.folder.rglob("arc001"))


@pytest.fixture
def site(xnat_sandbox):
    return Site(xnat_sandbox)


@pytest.fixture
def series(tmp_path):
    return make_series(tmp_path / "series")


def last_rows(path) -> np.ndarray:
    """Return the voxels that differ between the two patients."""
    return np.asarray(nibabel.load(path).dataobj)[:, -1]


def image_of(datastore, project: str) -> str:
    (image,) = [image for image in datastore.list_images() if image.startswith(f"{project}/")]
    return image


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("projects", ["PB", "PA,PB", None])
@pytest.mark.parametrize("digests", [True, False])
def test_the_mounted_folder_of_one_project_is_not_read_for_the_other(
    site, series, open_xnat_datastore, caplog, projects, digests
):
    site.fill("PA", series)
    site.fill("PB", another_patient(series))
    if not digests:
        site.forget_digests()
    datastore = open_xnat_datastore(project=projects, asset_path=site.archive() / "PA")
    assert not last_rows(datastore.get_image_uri(image_of(datastore, "PB"))).any()
    (warning,) = warnings(caplog)
    assert "downloaded" in warning


@pytest.mark.parametrize("image_format", ["nifti", "dicom"])
def test_the_mounted_archive_gives_each_project_its_own(site, series, open_xnat_datastore, caplog, image_format):
    site.fill("PA", series)
    site.fill("PB", another_patient(series))
    datastore = open_xnat_datastore(project="PA,PB", asset_path=site.archive(), image_format=image_format)
    for project, expected in (("PA", series), ("PB", another_patient(series))):
        uri = datastore.get_image_uri(image_of(datastore, project))
        if image_format == "nifti":
            assert last_rows(uri).any() == (project == "PA")
        else:
            assert {name: Path(uri, name).read_bytes() for name in expected} == expected
    assert warnings(caplog) == []


def test_a_folder_in_the_place_of_the_scan_that_leads_to_another_patient_is_not_read(
    site, series, open_xnat_datastore, tmp_path, caplog
):
    site.fill("PA", series)
    site.fill("PB", another_patient(series))
    link = tmp_path / "mount/PB"
    link.parent.mkdir()
    link.symlink_to(site.archive() / "PA")
    datastore = open_xnat_datastore(project="PB", asset_path=link.parent, image_format="dicom")
    uri = datastore.get_image_uri(image_of(datastore, "PB"))
    assert Path(uri, "0000.dcm").read_bytes() == another_patient(series)["0000.dcm"]
    assert "another MD5 digest" in warnings(caplog)[0]


def test_without_digests_files_of_another_series_in_the_place_of_the_scan_are_an_error(
    site, series, open_xnat_datastore, tmp_path
):
    site.fill("PA", series)
    site.fill("PB", another_patient(series))
    site.forget_digests()
    link = tmp_path / "mount/PB"
    link.parent.mkdir()
    link.symlink_to(site.archive() / "PA")
    datastore = open_xnat_datastore(project="PB", asset_path=link.parent)
    with pytest.raises(ImageError, match=f"{uid_of(series)}.*asset_path"):
        datastore.get_image_uri(image_of(datastore, "PB"))


@pytest.mark.parametrize("image_format", ["nifti", "dicom"])
def test_files_of_another_series_are_an_error_from_a_mount_and_a_note_when_downloaded(
    site, series, open_xnat_datastore, caplog, image_format, tmp_path
):
    site.fill("P", series, uid="1.2.3")
    mounted = open_xnat_datastore(project="P", asset_path=site.archive(), image_format=image_format)
    image = image_of(mounted, "P")
    with pytest.raises(ImageError, match=r"is of the series .*, XNAT lists 1\.2\.3"):
        mounted.get_image_uri(image)
    assert warnings(caplog) == []
    for _ in range(2):  # the second time it is in the cache
        datastore = open_xnat_datastore(project="P", image_format=image_format)
        assert "image_notes" not in datastore.status()
        datastore.get_image_uri(image)
        note = datastore.status()["image_notes"][image]
        assert note == f"4 of 4 files are of the series {uid_of(series)}; XNAT lists 1.2.3"
    (warning,) = warnings(caplog)
    assert image not in warning


def test_what_neither_a_digest_nor_a_series_proves_is_downloaded(site, series, open_xnat_datastore, tmp_path, caplog):
    site.fill("P", series, uid="")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "image.nii")
    site.fill("Q", {"image.nii": (tmp_path / "image.nii").read_bytes()}, "NIFTI")
    site.forget_digests()
    datastore = open_xnat_datastore(asset_path=site.archive())
    for image in datastore.list_images():
        datastore.get_image_uri(image)
    assert ["no MD5 digest" in warning for warning in warnings(caplog)] == [True, True]


def test_a_mounted_folder_with_images_that_xnat_does_not_list_is_not_handed_out(
    site, series, open_xnat_datastore, caplog
):
    site.fill("P", series)
    folder = next(site.archive().rglob("0000.dcm")).parent
    (folder / "stray.dcm").write_bytes(another_patient(series)["0000.dcm"])
    datastore = open_xnat_datastore(project="P", asset_path=site.archive(), image_format="dicom")
    uri = datastore.get_image_uri(image_of(datastore, "P"))
    assert "stray.dcm is an image that XNAT does not list" in warnings(caplog)[0]
    assert not Path(uri, "stray.dcm").exists()


def test_what_changed_on_the_mount_behind_xnat_s_back_is_noticed_at_the_next_comparison(
    site, series, open_xnat_datastore, caplog
):
    site.fill("P", series)
    datastore = open_xnat_datastore(project="P", asset_path=site.archive(), image_format="dicom")
    image = image_of(datastore, "P")
    uri = datastore.get_image_uri(image)
    path = next(site.archive().rglob("0000.dcm"))
    before = path.stat()
    path.write_bytes(another_patient(series)["0000.dcm"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert datastore.get_image_uri(image) == uri
    datastore.refresh()
    with pytest.raises(OSError, match="another MD5"):  # XNAT's own file is the wrong one as well
        datastore.get_image_uri(image)
    path.write_bytes(series["0000.dcm"])
    assert Path(datastore.get_image_uri(image), "0000.dcm").read_bytes() == series["0000.dcm"]
