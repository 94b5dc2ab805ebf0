"""Adding images through the datastore: twice, at the same time, under used names, and DICOM of several studies."""

from __future__ import annotations

import gzip
import multiprocessing
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from series_writer import SeriesWriter

from monailabel_xnat import XNATDatastore
from monailabel_xnat.errors import (
    AmbiguousNameError,
    ImageConflictError,
    ImageError,
    ServerError,
    SettingsError,
    UnknownImageError,
)
from monailabel_xnat.sandbox import Sandbox


@pytest.fixture(scope="module", params=["plain", "anonymised"])
def any_site(request):
    with Sandbox(anonymise=request.param == "anonymised") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def plain_site():
    with Sandbox() as sandbox:
        yield sandbox


class Bench:
    """One project of a sandbox, and datastores on it."""

    def __init__(self, sandbox, folder):
        self.sandbox, self.folder = sandbox, folder
        self.rest = requests.Session()
        self.rest.auth = (sandbox.username, sandbox.password)
        self.project = f"P{len(self.get('/data/projects'))}"
        self.put("")
        for role in ("Owners", "Members", "Collaborators"):
            self.put(f"/users/{role}/{role.lower().removesuffix('s')}")
        self.opened = []

    def open(self, machine="here", user="admin", **settings):
        """Open a datastore. A datastore on another machine does not wait for the locks of this one."""
        given = {"project": self.project, "environ": {}, "cache_path": self.folder / machine, **settings}
        self.opened.append(XNATDatastore(self.sandbox.url, user, self.sandbox.users[user], **given))
        return self.opened[-1]

    def put(self, path, **query):
        answer = self.rest.put(f"{self.sandbox.url}/data/projects/{self.project}{path}", params=query)
        answer.raise_for_status()
        return answer.text

    def get(self, path, **query):
        answer = self.rest.get(self.sandbox.url + path, params={"format": "json", **query})
        answer.raise_for_status()
        return answer.json()["ResultSet"]["Result"]

    def rows(self, path, **query):
        return self.get(f"/data/projects/{self.project}{path}", **query)

    def scans(self):
        """List (subject label, session label, scan, number of image files) of all scans."""
        columns = "label,subject_label,xnat:imagescandata/id,xnat:imagescandata/file/file_count"
        rows = self.rows("/experiments", xsiType="xnat:imageSessionData", columns=columns)
        keys = ("subject_label", "label", "xnat:imagescandata/id", "xnat:imagescandata/file/file_count")
        return sorted(tuple(row[key] for key in keys) for row in rows)

    def writes(self):
        return [
            entry for entry in self.sandbox.requests if entry.method in ("PUT", "POST") and "/auth" not in entry.path
        ]


@pytest.fixture
def any_bench(any_site, tmp_path):
    yield from _bench(any_site, tmp_path)


@pytest.fixture
def bench(plain_site, tmp_path):
    yield from _bench(plain_site, tmp_path)


def _bench(sandbox, folder):
    sandbox.faults.clear()
    bench = Bench(sandbox, folder)
    yield bench
    sandbox.faults.clear()
    for datastore in bench.opened:
        datastore.close()


def volume(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 99, (3, 4, 5)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    return path


class Study:
    """The DICOM files of one study. :meth:`series` writes its series."""

    made = 0

    def __init__(self, folder, name="Doe^Jane", patient="P1", **changes):
        Study.made += 1
        self.folder, self.uid = folder, f"1.2.3.{id(self)}.{Study.made}"
        self.values = {"PatientName": name, "PatientID": patient, "StudyDate": "20240131", **changes}

    def series(self, number=1, slices=3, seed=0, **changes):
        writer = SeriesWriter(self.folder / str(number), study_uid=self.uid, series_uid=f"{self.uid}.{number}")

        def change(dataset, slice_number):
            dataset.SeriesNumber = number
            for keyword, value in {**self.values, **changes}.items():
                setattr(dataset, keyword, value)

        stack = np.random.default_rng(seed + number).integers(0, 999, (slices, 8, 6)).astype(np.uint16)
        return writer.write(stack, change=change)


# Files


def test_the_same_file_again_has_the_same_id_and_nothing_is_sent_whatever_its_name(bench, tmp_path):
    datastore = bench.open()
    first = datastore.add_image("patient 1", str(volume(tmp_path / "a.nii.gz")), {})
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "tmp1234.nii.gz")
    before = len(bench.writes())
    for other in (datastore, bench.open("elsewhere"), bench.open(user="member")):
        assert other.add_image("patient 1", str(tmp_path / "tmp1234.nii.gz"), {}) == first
        assert other.add_image(None, str(tmp_path / "tmp1234.nii.gz"), {}) == first
        assert other.add_image(first, str(tmp_path / "tmp1234.nii.gz"), {}) == first
    assert len(bench.writes()) == before
    assert len(bench.scans()) == 1


def test_a_file_is_known_by_its_stored_bytes_not_by_what_they_unpack_to(bench, tmp_path):
    datastore = bench.open()
    plain = volume(tmp_path / "a.nii")
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    datastore.add_image("case", str(plain), {})
    with pytest.raises(ImageConflictError, match="rename it"):
        datastore.add_image("case", str(packed), {})


@pytest.mark.parametrize("is_full_id", [False, True])
def test_another_volume_under_a_taken_name_is_refused(bench, tmp_path, is_full_id):
    datastore = bench.open()
    name = f"{bench.project}/sub/ses/3" if is_full_id else "patient1"
    first = datastore.add_image(name, str(volume(tmp_path / "same.nii.gz")), {})
    for other in (volume(tmp_path / "1" / "other.nii.gz", 1), volume(tmp_path / "2" / "same.nii.gz", 2)):
        for server in (datastore, bench.open("elsewhere")):
            with pytest.raises(ImageConflictError, match=r"rename it") as caught:
                server.add_image(name, str(other), {})
            assert first in str(caught.value)
            assert caught.value.status_code == 409
    assert bench.scans() == [(*(("sub", "ses", "3") if is_full_id else ("patient1", "patient1", "1")), "1")]


def test_an_image_of_another_format_does_not_join_a_scan_that_has_one(bench, tmp_path):
    datastore = bench.open()
    first = datastore.add_image("case", str(volume(tmp_path / "a.nii.gz")), {})
    for name in ("b.nrrd", "b.mha", "b.nii"):
        for given in ("case", first):
            with pytest.raises(ImageConflictError, match="rename it"):
                datastore.add_image(given, str(volume(tmp_path / name, 1)), {})
    assert len(bench.scans()) == 1


def test_names_that_make_one_label_do_not_bring_two_patients_into_one_session(bench, tmp_path):
    datastore = bench.open()
    files = {name: volume(tmp_path / f"{seed}.nii.gz", seed) for seed, name in enumerate(("a b", "a_b", "a&b", "_a b"))}
    images = {name: datastore.add_image(name, str(file), {}) for name, file in files.items()}
    assert len({(subject, session) for subject, session, *_ in bench.scans()}) == 4
    for name, image in images.items():
        assert bench.open("elsewhere").add_image(name, str(files[name]), {}) == image
        assert Path(datastore.get_image_uri(name)).read_bytes() == files[name].read_bytes()


@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize("is_full_id", [False, True])
def test_two_who_add_under_one_name_at_once_do_not_get_one_scan(bench, tmp_path, is_same, is_full_id):
    datastores = [bench.open() for _ in range(4)]
    name = f"{bench.project}/sub/ses/3" if is_full_id else "patient1"
    endings = [".nii.gz"] * 4 if is_same else [".nii.gz", ".nii", ".nrrd", ".mha"]
    files = [volume(tmp_path / f"{n}{end}", 0 if is_same else n) for n, end in enumerate(endings)]
    bench.sandbox.faults.add(r"/resources/[A-Z]+$", method="PUT", delay=0.5, times=4)

    def add(number):
        try:
            return datastores[number].add_image(name, str(files[number]), {})
        except ImageConflictError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(add, range(4)))
    images = {answer for answer in answers if isinstance(answer, str)}
    assert len(images) == 1
    assert len([answer for answer in answers if isinstance(answer, str)]) == (4 if is_same else 1)
    assert [scan[-1] for scan in bench.scans()] == ["1"]
    assert bench.open("elsewhere").get_image_uri(images.pop())


def _add_in_a_process(url, user, password, project, folder, name, path, answers):
    datastore = XNATDatastore(url, user, password, project, cache_path=folder, environ={})
    try:
        answers.put(datastore.add_image(name, path, {}))
    except Exception as error:  # noqa: BLE001 - the test looks at it
        answers.put(repr(error))
    datastore.close()


def test_two_processes_that_add_at_once_do_not_get_one_scan(bench, tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    login = (bench.sandbox.url, bench.sandbox.username, bench.sandbox.password, bench.project, tmp_path / "here")
    started = [
        context.Process(
            target=_add_in_a_process, args=(*login, "patient1", str(volume(tmp_path / name, seed)), answers)
        )
        for seed, name in enumerate(("a.nii.gz", "b.nii.gz"))
    ]
    for process in started:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in started)
    for process in started:
        process.join(60)
    assert len([answer for answer in found if "ImageConflictError" in answer and "rename it" in answer]) == 1
    assert [scan[-1] for scan in bench.scans()] == ["1"]


@pytest.mark.parametrize("allow_delete", [True, False])
@pytest.mark.parametrize("given", ["patient1", "{project}/sub/ses/3"])
def test_two_machines_that_add_at_once_are_told_of_each_other(bench, tmp_path, allow_delete, given):
    name = given.format(project=bench.project)
    files = [volume(tmp_path / f"{machine}.nii.gz", seed) for seed, machine in enumerate("ab")]
    datastores = [bench.open(machine, allow_delete=allow_delete) for machine in "ab"]
    # Both have found the scan empty before either of them has stored anything.
    bench.sandbox.faults.add(r"/resources/NIFTI$", method="PUT", delay=1.0, times=2)

    def add(number):
        try:
            return datastores[number].add_image(name, str(files[number]), {})
        except (ImageError, AmbiguousNameError) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(add, range(2)))
    errors = [answer for answer in answers if not isinstance(answer, str)]
    assert errors, answers
    reader = bench.open("reader")
    for number, answer in enumerate(answers):
        if isinstance(answer, str):
            assert Path(reader.get_image_uri(answer)).read_bytes() == files[number].read_bytes()
    assert all(error.status_code == 409 for error in errors)
    assert all("rename it" in str(error) or "delete one of the files" in str(error) for error in errors)
    held = sum(int(scan[-1] or 0) for scan in bench.scans())
    assert held == 1 or (len(errors) == 2 and held == (0 if allow_delete else 2)), answers


@pytest.mark.parametrize("path", [r"/subjects/sub$", r"/experiments/ses$", r"/scans/3$"])
def test_two_machines_that_make_the_same_subject_session_or_scan_at_once(bench, tmp_path, path):
    file = volume(tmp_path / "a.nii.gz")
    datastores = [bench.open(machine) for machine in "ab"]
    bench.sandbox.faults.add(path, method="PUT", delay=1.0, times=2)
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(lambda store: store.add_image(f"{bench.project}/sub/ses/3", str(file), {}), datastores))
    assert len(set(images)) == 1
    # As in XNAT, two clients at once may make two resources with one label. One of them stays empty.
    assert [scan for scan in bench.scans() if scan[-1]] == [("sub", "ses", "3", "1")]
    assert len(bench.rows("/subjects")) == 1
    assert bench.open("reader").get_image_uri(images[0])


@pytest.mark.parametrize("allow_delete", [True, False])
def test_two_machines_that_add_two_formats_at_once_are_told_of_each_other(bench, tmp_path, allow_delete):
    files = [volume(tmp_path / name, seed) for seed, name in enumerate(("a.nii.gz", "b.nrrd"))]
    datastores = [bench.open(machine, allow_delete=allow_delete) for machine in "ab"]
    bench.sandbox.faults.add(r"/resources/(NIFTI|NRRD)$", method="PUT", delay=1.0, times=2)

    def add(number):
        try:
            return datastores[number].add_image("patient1", str(files[number]), {})
        except (ImageError, AmbiguousNameError) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(add, range(2)))
    errors = [answer for answer in answers if not isinstance(answer, str)]
    assert errors, answers
    assert all("at the same moment" in str(error) and error.status_code == 409 for error in errors)
    if allow_delete:
        assert all("taken back" in str(error) for error in errors)
        assert len([scan for scan in bench.scans() if scan[-1] not in ("", "0")]) == 2 - len(errors)
    else:
        assert all("the scan cannot be read while it holds both" in str(error) for error in errors)


def test_a_name_that_another_machine_has_just_taken_is_not_overwritten(bench, tmp_path):
    here, there = bench.open("here"), bench.open("there")
    here.list_images()
    first = there.add_image("patient1", str(volume(tmp_path / "a.nii.gz")), {})
    with pytest.raises(ImageConflictError, match="rename it"):
        here.add_image("patient1", str(volume(tmp_path / "b.nii.gz", 1)), {})
    assert Path(there.get_image_uri(first)).read_bytes() == (tmp_path / "a.nii.gz").read_bytes()


@pytest.mark.parametrize("user", ["admin", "member"])
def test_retries_of_a_refused_upload_leave_one_scan_at_most_and_are_told_of_it(bench, tmp_path, user):
    datastore = bench.open(user=user)
    path = str(volume(tmp_path / "a.nii.gz"))
    bench.sandbox.faults.add("/files/", method="PUT", status=413, times=None)
    for _ in range(3):
        for name in ("case", f"{bench.project}/sub/ses/4"):
            with pytest.raises(ServerError, match=r"413.*empty in XNAT stay|413") as caught:
                datastore.add_image(name, path, {})
            assert "the next attempt uses" in str(caught.value)
    left = bench.scans()
    assert len(left) == 2
    assert len(bench.rows("/subjects")) == 2
    bench.sandbox.faults.clear()
    datastore.add_image("case", path, {})
    assert datastore.add_image(f"{bench.project}/sub/ses/4", path, {}).endswith("/4")
    assert [scan[-1] for scan in bench.scans()] == ["1", "1"]
    assert len(datastore.list_images()) == 2


def test_what_the_filters_would_hide_is_refused_before_anything_is_written(bench, tmp_path):
    datastore = bench.open(series_description="T1*")
    before = len(bench.writes())
    with pytest.raises(SettingsError, match="would not be listed"):
        datastore.add_image("case", str(volume(tmp_path / "a.nii.gz")), {})
    assert len(bench.writes()) == before
    assert datastore.add_image("T1 of a case", str(tmp_path / "a.nii.gz"), {})


def test_a_file_that_was_stored_twice_in_one_scan_is_one_image(bench, tmp_path):
    datastore = bench.open()
    image = datastore.add_image("case", str(volume(tmp_path / "a.nii.gz")), {})
    _, _, session, scan = image.split("/")
    address = f"{bench.sandbox.url}/data/experiments/{session}/scans/{scan}/resources/NIFTI/files/again.nii.gz"
    headers = {"Content-Type": "application/octet-stream"}
    bench.rest.put(address, data=(tmp_path / "a.nii.gz").read_bytes(), headers=headers).raise_for_status()
    reader = bench.open("reader")
    assert Path(reader.get_image_uri(image)).read_bytes() == (tmp_path / "a.nii.gz").read_bytes()
    assert reader.add_image("case", str(tmp_path / "a.nii.gz"), {}) == image


def test_the_session_of_another_subject_is_not_added_to(bench, tmp_path):
    datastore = bench.open()
    datastore.add_image(f"{bench.project}/one/ses/1", str(volume(tmp_path / "a.nii.gz")), {})
    with pytest.raises(ImageConflictError, match="belongs to another subject"):
        datastore.add_image(f"{bench.project}/two/ses/2", str(volume(tmp_path / "b.nii.gz", 1)), {})
    # The name does not choose the session: the image gets a session of its own.
    datastore.add_image("ses", str(tmp_path / "b.nii.gz"), {})
    assert len({scan[:2] for scan in bench.scans()}) == 2


# DICOM


def test_the_same_dicom_again_has_the_same_id_and_nothing_is_sent(any_bench, tmp_path):
    datastore = any_bench.open()
    Study(tmp_path / "study").series()
    first = datastore.add_image(None, str(tmp_path / "study"), {})
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in (tmp_path / "study").rglob("*.dcm"):
            archive.write(path, f"deep/{path.name}")
    before = len(any_bench.writes())
    for server in (datastore, any_bench.open("elsewhere")):
        assert server.add_image(None, str(tmp_path / "study"), {}) == first
        assert server.add_image("some name", str(tmp_path / "study.zip"), {}) == first
        assert server.add_image(first, str(tmp_path / "study"), {}) == first
        assert server.add_image(None, str(next((tmp_path / "study").rglob("*.dcm"))), {}) == first
    assert len(any_bench.writes()) == before
    assert any_bench.scans() == [("Doe_Jane", "P1", "1", "3")]


def test_what_an_earlier_import_did_not_bring_is_added_and_nothing_else_is_sent(any_bench, tmp_path):
    datastore = any_bench.open()
    files = Study(tmp_path / "study").series(slices=5)
    (tmp_path / "part").mkdir()
    for path in files[:2]:
        shutil.copy(path, tmp_path / "part")
    first = datastore.add_image(None, str(tmp_path / "part"), {})
    assert datastore.add_image(None, str(tmp_path / "study"), {}) == first
    assert any_bench.scans() == [("Doe_Jane", "P1", "1", "5")]
    assert SimpleITK.ReadImage(datastore.get_image_uri(first)).GetSize()[2] == 5


def test_single_files_of_a_study_meet_in_one_session(any_bench, tmp_path):
    datastore = any_bench.open()
    study = Study(tmp_path / "study")
    other = Study(tmp_path / "other")
    images = {}
    for mine in (study, other):  # both are of one patient, so the second study would go to the prearchive
        for number in (1, 2):
            for path in mine.series(number):
                image = datastore.add_image(path.stem, str(path), {})
                images.setdefault((mine.uid, number), set()).add(image)
    assert all(len(found) == 1 for found in images.values())
    assert len({image for found in images.values() for image in found}) == 4
    sessions = {scan[1] for scan in any_bench.scans()}
    assert len(sessions) == 2
    assert "P1" in sessions
    assert [scan[-1] for scan in any_bench.scans()] == ["3"] * 4
    assert any_bench.get(f"/data/prearchive/projects/{any_bench.project}") == []


def test_a_folder_of_several_patients_studies_and_series(any_bench, tmp_path):
    datastore = any_bench.open()
    studies = [
        Study(tmp_path / "all" / "1"),
        Study(tmp_path / "all" / "2"),
        Study(tmp_path / "all" / "3", name="Roe^Rob", patient="P2"),
        Study(tmp_path / "all" / "4", name="Poe^Pat", patient="P1"),  # two hospitals use the same number
        Study(tmp_path / "all" / "5", name="", patient=""),
        Study(tmp_path / "all" / "6", name="", patient=""),
    ]
    for study in studies:
        study.series(1)
        study.series(2, slices=7 if study is studies[2] else 3)
    image = datastore.add_image(None, str(tmp_path / "all"), {})
    assert datastore.get_image_info(image)["SeriesInstanceUID"] == f"{studies[2].uid}.2"
    listed = [datastore.get_image_info(found) for found in datastore.list_images()]
    assert len({(info["experiment"], info["StudyInstanceUID"]) for info in listed}) == 6
    assert {info["StudyInstanceUID"] for info in listed} == {study.uid for study in studies}
    assert len(listed) == 12
    assert any_bench.get(f"/data/prearchive/projects/{any_bench.project}") == []
    before = len(any_bench.writes())
    assert datastore.add_image(None, str(tmp_path / "all"), {}) == image
    assert len(any_bench.writes()) == before


def test_siblings_of_one_study_and_studies_of_one_patient_added_at_once(any_bench, tmp_path):
    datastores = [any_bench.open() for _ in range(3)]
    studies = [Study(tmp_path / str(number)) for number in range(2)]
    files = [path for study in studies for number in (1, 2) for path in study.series(number, slices=2)]

    def add(number):
        return datastores[number % 3].add_image(None, str(files[number]), {})

    with ThreadPoolExecutor(3) as pool:
        images = list(pool.map(add, range(len(files))))
    assert len(set(images)) == 4
    assert [scan[-1] for scan in any_bench.scans()] == ["2"] * 4
    assert len({scan[1] for scan in any_bench.scans()}) == 2


def test_dicom_under_an_id_of_the_caller(any_bench, tmp_path):
    datastore = any_bench.open()
    Study(tmp_path / "a").series(4)
    Study(tmp_path / "b").series(4)
    image = datastore.add_image(f"{any_bench.project}/sub/ses/4", str(tmp_path / "a"), {})
    assert any_bench.scans() == [("sub", "ses", "4", "3")]
    assert datastore.add_image(f"{any_bench.project}/sub/ses/4", str(tmp_path / "a"), {}) == image
    with pytest.raises(ImageConflictError, match=r"another DICOM study.*rename it"):
        datastore.add_image(f"{any_bench.project}/sub/ses/4", str(tmp_path / "b"), {})
    with pytest.raises(ImageConflictError, match="2 DICOM studies"):
        datastore.add_image(f"{any_bench.project}/sub/new/4", str(tmp_path), {})
    assert any_bench.scans() == [("sub", "ses", "4", "3")]
    assert any_bench.get(f"/data/prearchive/projects/{any_bench.project}") == []


def test_another_series_does_not_take_the_scan_that_was_named(any_bench, tmp_path):
    datastore = any_bench.open()
    study = Study(tmp_path / "a")
    study.series(1)
    first = datastore.add_image(None, str(tmp_path / "a"), {})
    study.folder = tmp_path / "b"
    study.series(2)
    with pytest.raises(ImageConflictError, match=r"is another image.*rename it"):
        datastore.add_image(first, str(tmp_path / "b"), {})
    with pytest.raises(ImageConflictError, match="rename it"):
        datastore.add_image(first, str(volume(tmp_path / "c.nii.gz")), {})
    assert any_bench.scans() == [("Doe_Jane", "P1", "1", "3")]


def test_the_labels_that_comments_name_are_kept(any_bench, tmp_path):
    datastore = any_bench.open()
    for number in (1, 2):
        Study(tmp_path / str(number), PatientComments="Subject: S7; Session: E7").series()
        datastore.add_image(None, str(tmp_path / str(number)), {})
    (first, second) = any_bench.scans()
    assert first[:2] == ("S7", "E7")
    assert second[0] == "S7"
    assert second[1].startswith("E7_")


def test_a_study_in_the_prearchive_is_named_with_the_way_to_archive_it(any_bench, tmp_path):
    datastore = any_bench.open()
    Study(tmp_path / "a").series()
    # The site chooses sessions by rules of its own, and the session for this study is in use already.
    Study(tmp_path / "b", PatientComments="Session:P9").series()
    datastore.add_image(None, str(tmp_path / "b"), {})
    any_bench.sandbox.faults.add("/experiments/P1$", method="GET", status=404, times=1)
    Study(tmp_path / "c").series()
    datastore.add_image(None, str(tmp_path / "a"), {})
    any_bench.sandbox.faults.add("/experiments/P1$", method="GET", status=404, times=1)
    with pytest.raises(
        ServerError, match=r"/prearchive/projects/.*services/archive\?src=/prearchive/projects/"
    ) as caught:
        datastore.add_image(None, str(tmp_path / "c"), {})
    waiting = any_bench.get(f"/data/prearchive/projects/{any_bench.project}")
    assert waiting[0]["url"] in str(caught.value)
    source = waiting[0]["url"]
    answer = any_bench.rest.post(
        any_bench.sandbox.url + "/data/services/archive", params={"src": source, "session": "P1_second"}
    )
    assert answer.status_code == 200
    datastore.refresh()
    assert len(datastore.list_images()) == 3


def test_dicom_that_was_uploaded_file_by_file_is_known_by_its_headers(bench, tmp_path):
    datastore = bench.open()
    files = Study(tmp_path / "study").series()
    image = datastore.add_image(f"{bench.project}/s/e/1", str(tmp_path / "study"), {})
    session = image.split("/")[2]
    kind = "xnat:ctScanData"
    scan = f"/subjects/{image.split('/')[1]}/experiments/{session}/scans/1"
    bench.rest.delete(f"{bench.sandbox.url}/data/experiments/{session}/scans/1", params={"removeFiles": "true"})
    bench.put(scan, **{"xsiType": kind, f"{kind}/UID": datastore.get_image_info(image)["SeriesInstanceUID"]})
    for number, path in enumerate(files[:2]):
        address = f"{bench.sandbox.url}/data/experiments/{session}/scans/1/resources/DICOM/files/any{number}.dcm"
        headers = {"Content-Type": "application/octet-stream"}
        bench.rest.put(address, data=path.read_bytes(), headers=headers).raise_for_status()
    assert bench.open("elsewhere").add_image(None, str(tmp_path / "study"), {}) == image
    assert bench.scans() == [("s", "e", "1", "3")]


def test_dicom_that_xnat_takes_and_does_not_keep_is_noticed(bench, tmp_path):
    datastore = bench.open()
    Study(tmp_path / "study").series(PatientComments="")
    bench.sandbox.faults.add("/services/import", method="POST", lose=True, times=1)
    with pytest.raises((ServerError, UnknownImageError)):
        datastore.add_image(None, str(tmp_path / "study"), {})
    assert datastore.add_image(None, str(tmp_path / "study"), {})


def test_a_study_that_xnat_files_in_two_sessions_is_found_in_both(bench, tmp_path):
    datastore = bench.open()
    study = Study(tmp_path / "study")
    study.series(1)
    image = datastore.add_image(f"{bench.project}/s/first/1", str(tmp_path / "study"), {})
    study.folder = tmp_path / "more"
    study.series(2)
    other = datastore.add_image(f"{bench.project}/s/second/2", str(tmp_path / "more"), {})
    before = len(bench.writes())
    assert datastore.add_image(None, str(tmp_path / "study"), {}) == image
    assert datastore.add_image(None, str(tmp_path / "more"), {}) == other
    assert len(bench.writes()) == before


def test_the_same_dicom_from_two_machines_at_once_is_no_conflict(any_bench, tmp_path):
    datastores = [any_bench.open(machine) for machine in "ab"]
    Study(tmp_path / "study").series()
    any_bench.sandbox.faults.add("/services/import", method="POST", delay=1.0, times=2)
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(lambda store: store.add_image(None, str(tmp_path / "study"), {}), datastores))
    assert len(set(images)) == 1
    assert any_bench.scans() == [("Doe_Jane", "P1", "1", "3")]
