"""pyxnat, unmodified, against the sandbox."""

from __future__ import annotations

import warnings
import zipfile

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyxnat

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.claim("other people's clients", "pyxnat")]


@pytest.fixture
def interface(xnat_sandbox, tmp_path):
    found = pyxnat.Interface(server=xnat_sandbox.url, user="owner", password=xnat_sandbox.users["owner"])
    yield found
    found.disconnect()


@pytest.fixture
def scan(interface):
    project = interface.select.project("PYX")
    project.create()
    scan = project.subject("s1").experiment("e1").scan("1")
    scan.create(experiment="xnat:mrSessionData", scans="xnat:mrScanData")
    return scan


def test_projects_are_made_described_and_opened(interface):
    project = interface.select.project("PYX")
    assert not project.exists()
    project.create()
    assert project.exists()
    assert interface.select.projects().get() == ["PYX"]
    assert project.accessibility() == b"private"
    project.set_accessibility("public")
    assert project.accessibility() == b"public"
    project.set_prearchive_code("0")
    assert project.prearchive_code() == 0
    assert project.quarantine_code() == 0
    assert "owner" in project.users()
    assert project.user_role("owner") == "owner"
    project.attrs.set("description", "a text")
    assert project.attrs.get("description") == "a text"


def test_objects_are_selected_by_label_and_by_wildcard(interface, scan):
    subject = interface.select("/project/PYX/subjects/s1")
    assert subject.exists()
    assert subject.label() == "s1"
    assert interface.select("/projects/PYX/subjects/*/experiments/*").get() == [
        interface.select.project("PYX").subject("s1").experiment("e1").id()
    ]
    assert scan.exists()
    assert scan.datatype() == "xnat:mrScanData"
    assert not scan.parent().scan("2").exists()
    assert scan.parent().scans().get() == ["1"]


def test_attributes_are_set_and_read(scan):
    scan.attrs.mset({"xnat:mrScanData/quality": "usable", "xnat:mrScanData/type": "T1"})
    assert scan.attrs.get("quality") == "usable"
    session = scan.parent()
    session.attrs.set("xnat:mrSessionData/date", "2024-06-24")
    assert session.attrs.get("xnat:mrSessionData/date") == "2024-06-24"


def test_arrays_are_joined_lists(interface, scan):
    rows = interface.array.experiments(project_id="PYX", experiment_type="xnat:mrSessionData").data
    assert [row["xnat:mrsessiondata/subject_id"] for row in rows] == [scan.parent().parent().id()]
    rows = interface.array.scans(project_id="PYX", experiment_type="xnat:mrSessionData", scan_type="xnat:mrScanData")
    assert [row["xnat:mrscandata/id"] for row in rows.data] == ["1"]


def test_files_are_put_got_and_deleted(scan, tmp_path):
    source = tmp_path / "a.nii"
    source.write_bytes(b"\0\1" * 50)
    resource = scan.resource("LABELS")
    file = resource.file("a.nii")
    file.insert(str(source), format="NIFTI", content="SEG", tags="x")
    assert file.exists()
    assert int(file.size()) == 100
    assert (file.format(), file.content()) == ("NIFTI", "SEG")
    copy = file.get(str(tmp_path / "copy.nii"))
    assert (tmp_path / "copy.nii").read_bytes() == source.read_bytes()
    assert copy
    assert [item.label() for item in resource.files()] == ["a.nii"]
    assert [item.label() for item in scan.resources()] == ["LABELS"]
    file.delete()
    assert not file.exists()
    resource.delete()
    assert not scan.resource("LABELS").exists()


def test_objects_are_shared_and_deleted(interface, scan):
    interface.select.project("OTHER").create()
    subject = interface.select.project("PYX").subject("s1")
    subject.share("OTHER")
    assert sorted(subject.shares().get()) == ["OTHER", "PYX"]
    subject.unshare("OTHER")
    session = subject.experiment("e1")
    session.delete()
    assert not session.exists()
    subject.delete()
    assert not subject.exists()


def test_a_project_tells_what_it_holds(interface, scan):
    """pyxnat's repr_test: the counts of sessions and the owners come from a search over all display fields."""
    shown = repr(interface.select.project("PYX"))
    assert "Project" in shown
    (row,) = [row for row in interface.select("xnat:projectData").all().data if row["id"] == "PYX"]
    assert "Owner Sandbox" in row["project_owners"]
    assert row["proj_mr_count"] == "1"


def test_parameters_of_a_scan_are_told(interface, scan):
    """pyxnat's custom_variables_test."""
    scan.set_param("foo", "foostring")
    scan.set_param("bar", "1")
    assert (scan.params(), scan.get_params()) == (["foo", "bar"], ["foostring", "1"])


def test_data_types_are_inspected_and_archives_are_put_whole(interface, scan, tmp_path):
    """pyxnat's inspect_test, resources_test and prearchive_test."""
    assert interface.inspect.datatypes("xnat:mr*") == ["xnat:mrSessionData"]
    assert "xnat:subjectData/ID" in interface.inspect.datatypes("xnat:subjectData", "*")
    assert interface.manage.prearchive.get() == []
    source = tmp_path / "two.zip"
    with zipfile.ZipFile(source, "w") as target:
        target.writestr("a.txt", "a")
        target.writestr("below/b.txt", "b")
    resource = scan.parent().parent().resource("DOCS")
    resource.put_zip(str(source), extract=True)
    assert sorted(resource.files().get()) == ["a.txt", "b.txt"]
    assert [path.rpartition("/")[2] for path in resource.get(str(tmp_path), extract=True)] == ["a.txt", "b.txt"]


def test_an_assessor_of_any_type_is_sent_back_with_what_was_done_to_it(interface, scan):
    """pyxnat's provenance_test: it reads the document of its default type, adds a step, and puts it."""
    assessor = scan.parent().assessor("a1").insert(use_label=True)
    step = {
        "program": "young",
        "timestamp": "2011-03-01T12:01:01",
        "user": "angus",
        "machine": "m",
        "platform": "linux",
    }
    assessor.provenance.set(step)
    (found,) = assessor.provenance.get()
    assert (found["program"], found["user"]) == ("young", "angus")


def test_the_values_of_a_field_are_asked_for(interface, scan):
    """pyxnat's search_test: field_values()."""
    (value,) = interface.inspect.field_values("xnat:subjectData/SUBJECT_ID")
    assert value.startswith("XNAT_S")
