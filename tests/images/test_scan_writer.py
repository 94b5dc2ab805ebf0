"""Adding images to XNAT, and removing scans from it, against the sandbox."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest
import SimpleITK
from scan_bench import make_series

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import (
    AccessDeniedError,
    ImageError,
    InvalidIdError,
    ReadOnlyError,
    SettingsError,
    TransferError,
)
from monailabel_xnat.images import Images
from monailabel_xnat.images.scan_writer import ScanWriter
from monailabel_xnat.sandbox import Sandbox


@pytest.fixture(scope="module")
def running():
    with Sandbox() as sandbox:
        yield sandbox


class Datastore:
    """Images of one new project, as one user."""

    def __init__(self, sandbox, folder, user="admin", **values):
        given = {"server": sandbox.url, "username": user, "password": sandbox.users[user], "cache_path": folder}
        self.settings = Settings.load({**given, **values}, {}, {})
        self.session = Session(self.settings)
        self.images = Images(self.session, self.settings)
        self.catalog = Catalog(self.session)
        self.writer = ScanWriter(self.session, self.catalog)

    def add(self, image_id, path):
        return self.writer.add(image_id, path).image_id

    def scan(self, image):
        self.catalog.renew()
        return self.catalog.scan(image)

    def listed(self):
        self.catalog.renew()
        return [str(scan.image_id) for scan in self.catalog.scans()]

    def close(self):
        self.images.close()
        self.session.close()


@pytest.fixture
def sandbox(running):
    running.faults.clear()
    return running


@pytest.fixture
def project(sandbox, request):
    name = f"P{abs(hash(request.node.name)) % 10**9}"
    admin = Session(Settings.load({"server": sandbox.url, "username": "admin", "password": sandbox.password}, {}, {}))
    admin.request("PUT", quoted("data", "projects", name))
    for role in ("Owners", "Members", "Collaborators"):
        login = role.lower().removesuffix("s")
        admin.request("PUT", quoted("data", "projects", name, "users", role, login))
    admin.close()
    return name


@pytest.fixture
def open_datastore(sandbox, project, tmp_path):
    opened = []

    def open_it(user="admin", **values):
        opened.append(Datastore(sandbox, tmp_path / "cache", user, **{"project": project, **values}))
        return opened[-1]

    yield open_it
    for datastore in opened:
        datastore.close()


@pytest.fixture
def brain(tmp_path):
    return write_image(tmp_path / "Brain of T.1 (new).nii.gz")


def write_image(path, values=None):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4) if values is None else values
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    return path


def test_a_nifti_with_a_full_id_becomes_that_scan(open_datastore, project, brain):
    datastore = open_datastore()
    image = datastore.add(f"{project}/sub1/ses1/7", brain)
    scan = datastore.scan(image)
    assert (scan.subject_label, scan.session_label, image.scan) == ("sub1", "ses1", "7")
    assert image.subject.startswith("XNAT_S")
    assert image.experiment.startswith("XNAT_E")
    assert datastore.images.path(scan).read_bytes() == brain.read_bytes()


def test_without_an_id_the_file_name_gives_one(open_datastore, brain):
    datastore = open_datastore()
    scan = datastore.scan(datastore.add(None, brain))
    assert (scan.subject_label, scan.session_label, scan.image_id.scan) == ("Brain_of_T_1_new", "Brain_of_T_1_new", "1")


def test_a_plain_id_names_subject_and_session(open_datastore, brain):
    datastore = open_datastore()
    scan = datastore.scan(datastore.add("case 12", brain))
    assert (scan.subject_label, scan.session_label) == ("case_12", "case_12")


def test_canonical_ids_name_what_exists(open_datastore, project, brain, tmp_path):
    datastore = open_datastore()
    first = datastore.add(f"{project}/sub1/ses1/1", brain)
    other = write_image(tmp_path / "other.nrrd")
    second = datastore.add(f"{project}/{first.subject}/{first.experiment}/2", other)
    assert (second.subject, second.experiment) == (first.subject, first.experiment)
    assert datastore.images.path(datastore.scan(second)).name.endswith(".nrrd")


def test_an_image_in_xnat_is_not_overwritten(open_datastore, project, brain, tmp_path):
    datastore = open_datastore()
    datastore.add(f"{project}/sub1/ses1/1", brain)
    with pytest.raises(ImageError, match=r"already holds an image: scan_1.nii.gz"):
        datastore.add(f"{project}/sub1/ses1/1", write_image(tmp_path / "other.nii"))
    same_name = write_image(tmp_path / "deep.nii.gz", np.zeros((2, 2, 2), np.uint8)).rename(tmp_path / "x.nii.gz")
    brain.write_bytes(same_name.read_bytes())
    with pytest.raises((ImageError, TransferError)):
        datastore.add(f"{project}/sub1/ses1/1", brain)


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.nii", np.int16), ("a.mha", np.float32), ("a.nrrd", np.uint16), ("a.png", np.uint8)]
)
def test_other_formats(open_datastore, tmp_path, name, dtype):
    datastore = open_datastore()
    shape = (3, 4) if name.endswith("png") else (2, 3, 4)
    path = write_image(tmp_path / name, np.ones(shape, dtype))
    assert datastore.images.path(datastore.scan(datastore.add(None, path))).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("lowest", "values", "modality"), [(-1000, {}, "CT"), (0, {}, "MR"), (0, {"modality": "CT"}, "CT")]
)
def test_the_modality_is_the_one_listed_or_shows_in_the_values(open_datastore, tmp_path, lowest, values, modality):
    datastore = open_datastore(**values)
    path = write_image(tmp_path / "a.nii", np.linspace(lowest, 1000, 24, dtype=np.int16).reshape(2, 3, 4))
    assert datastore.scan(datastore.add(None, path)).modality == modality


def test_a_dicom_folder_goes_through_the_import(open_datastore, tmp_path):
    datastore = open_datastore()
    series = make_series(tmp_path / "series")
    (tmp_path / "series" / "notes.txt").write_text("no DICOM")
    image = datastore.add(f"{datastore.settings.project[0]}/sub1/ses1/1", tmp_path / "series")
    scan = datastore.scan(image)
    assert (scan.subject_label, scan.session_label) == ("sub1", "ses1")
    assert scan.resource("DICOM").file_count == len(series)
    assert datastore.images.grid(scan).shape == (10, 12, 4)


def test_a_dicom_zip_and_a_single_dicom_file(open_datastore, tmp_path):
    datastore = open_datastore()
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in make_series(tmp_path / "series").items():
            archive.writestr(f"deep/{name}", content)
    zipped = datastore.add(None, tmp_path / "series.zip")
    assert datastore.scan(zipped).resource("DICOM").file_count == 4
    single = tmp_path / "IM0001"
    single.write_bytes(next(iter(make_series(tmp_path / "other", slices=1).values())))
    assert datastore.scan(datastore.add("IM0001", single)).resource("DICOM").file_count == 1


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "empty folder", "no DICOM in the folder", "text", "cut", "CUT", "bad zip"]
)
def test_what_is_no_image_is_refused_before_anything_is_written(open_datastore, sandbox, tmp_path, kind):
    datastore = open_datastore()
    datastore.session.verify_login()
    path = tmp_path / "x.nii.gz"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_bytes(gzip.compress(b"words"))
    elif kind == "cut":
        whole = write_image(path, np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
        path.write_bytes(whole.read_bytes()[:-2000])
    elif kind == "CUT":  # SimpleITK still reads it as a NIfTI file, and fills the missing part with zeros
        whole = write_image(path, np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
        path = tmp_path / "X.NII.GZ"
        path.write_bytes(whole.read_bytes()[:-2000])
    elif kind == "bad zip":
        path = tmp_path / "x.zip"
        path.write_bytes(b"PK\x03\x04 no zip")
    elif "folder" in kind:
        path = tmp_path / "folder"
        path.mkdir()
        if kind.startswith("no DICOM"):
            (path / "a.txt").write_text("words")
    before = len(sandbox.requests)
    with pytest.raises(ImageError):
        datastore.add(None, path)
    assert len(sandbox.requests) == before


def test_read_only_is_refused_before_any_request(open_datastore, project, brain, sandbox):
    datastore = open_datastore(read_only=True)
    before = len(sandbox.requests)
    with pytest.raises(ReadOnlyError, match="read-only"):
        datastore.add(None, brain)
    assert len(sandbox.requests) == before


@pytest.mark.parametrize("configured", ["", "A,B"])
def test_which_project_must_be_clear(open_datastore, brain, configured):
    datastore = open_datastore(project=configured)
    with pytest.raises(SettingsError, match=r"not clear to which project.*set project to one ID"):
        datastore.add(None, brain)


def test_an_id_in_another_project_or_malformed_is_refused(open_datastore, brain):
    datastore = open_datastore()
    with pytest.raises(SettingsError, match="'OTHER' is not among those configured"):
        datastore.add("OTHER/s/e/1", brain)
    with pytest.raises(InvalidIdError):
        datastore.add("s/e", brain)


def test_a_format_that_would_not_be_listed_is_refused(open_datastore, brain):
    with pytest.raises(SettingsError, match="add NIFTI to the setting image_resource"):
        open_datastore(image_resource="DICOM").add(None, brain)


def test_a_member_adds_and_a_collaborator_is_told_why_not(open_datastore, brain):
    member = open_datastore("member")
    assert str(member.add(None, brain)) in member.listed()
    with pytest.raises(AccessDeniedError, match=r"collaborator.*may not add images to project"):
        open_datastore("collaborator").add("another", brain)


def test_a_failed_upload_leaves_no_empty_scan(open_datastore, project, brain, sandbox):
    datastore = open_datastore()
    sandbox.faults.add("/files/", method="PUT", status=500, times=None)
    with pytest.raises(Exception, match="500"):
        datastore.add("case", brain)
    sandbox.faults.clear()
    sessions = datastore.session.rows(quoted("data", "projects", project, "experiments"))
    scans = datastore.session.rows(quoted("data", "experiments", sessions[0]["ID"], "scans"))
    assert scans == []
    assert datastore.add("case", brain).scan == "1"


def test_removing_is_refused_unless_allowed(open_datastore, brain, sandbox):
    datastore = open_datastore()
    scan = datastore.scan(datastore.add(None, brain))
    before = len(sandbox.requests)
    with pytest.raises(ReadOnlyError, match="set allow_delete to true"):
        datastore.writer.remove(scan)
    with pytest.raises(ReadOnlyError, match="read-only"):
        open_datastore(read_only=True, allow_delete=True).writer.remove(scan)
    assert len(sandbox.requests) == before


def test_removing_deletes_the_scan_and_what_is_kept_of_it(open_datastore, brain):
    datastore = open_datastore(allow_delete=True)
    scan = datastore.scan(datastore.add(None, brain))
    datastore.writer.remove(scan)
    assert datastore.listed() == []
    datastore.writer.remove(scan)


def test_a_member_is_told_who_may_delete(open_datastore, brain):
    datastore = open_datastore("member", allow_delete=True)
    scan = datastore.scan(datastore.add(None, brain))
    with pytest.raises(AccessDeniedError, match=r"'member' may not delete scans.*owner"):
        datastore.writer.remove(scan)
    assert list_files(datastore.session, scan.path + "/resources/NIFTI")
