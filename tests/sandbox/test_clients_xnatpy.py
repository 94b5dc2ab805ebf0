"""xnatpy, unmodified, against the sandbox: connect in every way, walk, make, set, share, delete."""

from __future__ import annotations

import gc
import json
import zipfile
from datetime import datetime
from pathlib import Path

import pydicom
import pytest
import requests
import xnat
from xnat.exceptions import XNATError, XNATLoginFailedError, XNATResponseError
from xnat.search import CustomFieldSearchField

from monailabel_xnat.sandbox import Sandbox

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.claim("other people's clients", "xnatpy")]


@pytest.fixture(scope="module")
def shared_schemas():
    folder = Path(__file__).parents[2].parent / "shared" / "xnat-schemas"
    if not folder.is_dir():
        pytest.skip("XNAT's schemas are not here")
    return folder


@pytest.fixture(scope="module", params=["ours", "XNAT's"])
def server(request):
    """A sandbox that serves our schemas, and one that serves those of XNAT."""
    schemas = None
    if request.param != "ours":
        schemas = request.getfixturevalue("shared_schemas")
    with Sandbox(schemas=schemas) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def connection(server):
    """One connection with the whole model, for all tests, because building the model takes a second or more."""
    with xnat.connect(server.url, user="owner", password=server.users["owner"], loglevel="ERROR") as found:
        yield found


@pytest.fixture
def project(server, connection):
    server.reset()
    # The reset has logged everybody out. xnatpy keeps its credentials and can log in again.
    connection.interface.cookies.clear()
    connection.interface.auth = ("owner", server.users["owner"])
    connection.clearcache()
    connection.put("/data/archive/projects/P")
    return connection.projects["P"]


@pytest.fixture
def session(connection, project):
    subject = connection.classes.SubjectData(parent=project, label="s1")
    return connection.classes.MrSessionData(parent=subject, label="e1")


def test_connect_builds_every_class_and_knows_the_user(connection):
    assert connection.logged_in_user == "owner"
    assert connection.xnat_version.startswith("1.9")
    for name in ("ProjectData", "MrSessionData", "PetmrSessionData", "CtScanData", "SegScanData"):
        assert hasattr(connection.classes, name)
    assert "icr:roiCollectionData" in connection.XNAT_CLASS_LOOKUP


def test_walk(connection, project, session):
    scan = connection.classes.MrScanData(parent=session, id="1", type="T1")
    connection.clearcache()
    project = connection.projects["P"]
    assert [item.label for item in project.subjects.values()] == ["s1"]
    found = project.experiments["e1"]
    assert (found.label, found.project, found.subject.label) == ("e1", "P", "s1")
    assert [(item.id, item.type) for item in found.scans.values()] == [("1", "T1")]
    assert project.subjects["s1"].experiments["e1"].id == found.id
    assert list(found.assessors) == list(found.reconstructions) == []
    assert connection.scan_types == [{"type": "T1"}]
    assert connection.scanners == []
    assert connection.experiments["e1"].id == found.id
    assert scan.fulluri.endswith("/scans/1")


def test_set_fields(connection, project, session):
    scan = connection.classes.MrScanData(parent=session, id="1", type="T1")
    scan.quality = "unusable"
    scan.note = "moved"
    scan.frames = 12
    session.fields["status"] = "done"
    session.note = "seen"
    subject = project.subjects["s1"]
    subject.demographics.gender = "female"
    subject.demographics.age = 40
    connection.clearcache()
    found = connection.projects["P"].experiments["e1"]
    assert (found.note, dict(found.fields)) == ("seen", {"status": "done"})
    assert (found.scans["1"].quality, found.scans["1"].note, found.scans["1"].frames) == ("unusable", "moved", 12)
    demographics = connection.projects["P"].subjects["s1"].demographics
    assert (demographics.gender, demographics.age) == ("female", 40)


def test_upload_and_download(connection, session, tmp_path):
    scan = connection.classes.MrScanData(parent=session, id="1", type="T1")
    resource = scan.create_resource("LABELS")
    resource.upload_data(b"content", "sub/a.bin", overwrite=True)
    (tmp_path / "folder").mkdir()
    for name in "xy":
        (tmp_path / "folder" / f"{name}.txt").write_text(name)
    resource.upload_dir(tmp_path / "folder")
    resource.clearcache()
    assert sorted(resource.files.keys()) == ["sub/a.bin", "x.txt", "y.txt"]
    file = resource.files["sub/a.bin"]
    assert file.size == "7"
    file.download(str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"content"
    session.download_dir(str(tmp_path / "session"))
    assert sorted(path.name for path in (tmp_path / "session").rglob("*.*")) == ["a.bin", "x.txt", "y.txt"]
    file.delete()
    resource.clearcache()
    assert sorted(resource.files.keys()) == ["x.txt", "y.txt"]


def test_share_rename_status_and_delete(connection, project, session):
    connection.put("/data/archive/projects/Q")
    connection.clearcache()
    subject = connection.projects["P"].subjects["s1"]
    subject.share("Q")
    session.share("Q", label="elsewhere")
    assert [item.label for item in connection.projects["Q"].experiments.values()] == ["elsewhere"]
    session.quarantine()
    assert session.status == "quarantine"
    session.activate()
    session.label = "renamed"
    connection.clearcache()
    assert connection.projects["P"].experiments["renamed"].id == session.id


def test_delete(connection, project):
    subject = connection.classes.SubjectData(parent=project, label="s2")
    session = connection.classes.CtSessionData(parent=subject, label="e2")
    connection.classes.CtScanData(parent=session, id="1", type="X")
    connection.clearcache()
    found = connection.projects["P"].experiments["e2"]
    # xnatpy 0.8.1 tells all listings of the process, also those of closed sessions (core.py, line 974).
    gc.collect()
    found.scans["1"].delete()
    found.delete()
    connection.projects["P"].subjects["s2"].delete()
    connection.clearcache()
    assert len(connection.projects["P"].experiments) == len(connection.projects["P"].subjects) == 0


def test_assessors(connection, session):
    made = connection.classes.QcManualAssessorData(parent=session, label="qc1")
    connection.clearcache()
    found = connection.projects["P"].experiments["e1"].assessors["qc1"]
    assert found.id == made.id
    assert found.fulluri.endswith(f"/assessors/{made.id}")


def test_roi_collections_are_objects(connection, session):
    connection.put(
        f"{session.fulluri}/assessors/roi",
        query={
            "xsiType": "icr:roiCollectionData",
            "icr:roiCollectionData/collectionType": "SEG",
            "icr:roiCollectionData/name": "liver",
            "icr:roiCollectionData/references/seriesUID": "1.2.3",
        },
        accepted_status=[200, 201],
    )
    connection.clearcache()
    found = connection.projects["P"].experiments["e1"].assessors["roi"]
    assert (found.collection_type, found.name) == ("SEG", "liver")


def test_errors_carry_the_status(connection, project):
    with pytest.raises(XNATResponseError, match="404"):
        connection.get("/data/experiments/nothing?format=json")


# Ways to connect


def connect(sandbox, **options):
    return xnat.connect(sandbox.url, loglevel="ERROR", no_parse_model=True, **options)


def test_raw_connection_is_a_handful_of_requests(xnat_sandbox):
    with connect(xnat_sandbox, user="member", password=xnat_sandbox.users["member"]) as raw:
        assert raw.get_json("/data/projects")["ResultSet"]["Result"] == []
        assert raw.logged_in_user == "member"
    assert len(xnat_sandbox.requests) <= 7
    assert list(xnat_sandbox.requests)[-1].method == "DELETE"


def test_extension_types_may_be_left_out(xnat_sandbox):
    with xnat.connect(
        xnat_sandbox.url,
        user="member",
        password=xnat_sandbox.users["member"],
        loglevel="ERROR",
        extension_types=False,
    ) as found:
        assert hasattr(found.classes, "MrSessionData")


def test_alias_tokens_connect(xnat_sandbox):
    issued = requests.get(
        f"{xnat_sandbox.url}/data/services/tokens/issue", auth=("owner", xnat_sandbox.users["owner"]), timeout=10
    ).json()
    with connect(xnat_sandbox, user=issued["alias"], password=issued["secret"]) as raw:
        assert raw.logged_in_user == "owner"


def test_wrong_passwords_fail(xnat_sandbox):
    with pytest.raises((XNATLoginFailedError, XNATError)):
        connect(xnat_sandbox, user="owner", password="wrong")


def test_guests_connect_to_open_sites():
    with Sandbox(require_login=False) as open_site:
        open_site.archive.create_project("PUB", accessibility="public")
        with connect(open_site) as raw:
            assert [row["ID"] for row in raw.get_json("/data/projects")["ResultSet"]["Result"]] == ["PUB"]


def test_a_site_under_a_path(tmp_path):
    with Sandbox(context="/xnat") as sandbox:
        sandbox.archive.create_project("P")
        with connect(sandbox, user="owner", password=sandbox.users["owner"]) as raw:
            assert raw.get_json("/data/projects/P/subjects")["ResultSet"]["Result"] == []


def test_plugins_are_told(connection):
    (plugin,) = connection.plugins.data.values()
    assert (plugin.id, plugin.version, plugin.bean_name) == ("ohifViewerPlugin", "3.6.0", "ohifViewerPlugin")


def test_what_is_imported_waits_is_looked_at_and_archived(connection, project, demo_dicom, tmp_path):
    """xnatpy's services and prearchive, with the objects that they return."""
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(demo_dicom.cases[1].dicom.rglob("*.dcm"))[:2]:
            target.write(path, path.name)
    waiting = connection.services.import_(
        str(archive), project="P", subject="S", experiment="E", destination="/prearchive"
    )
    assert (waiting.label, waiting.status, waiting.subject, waiting.project) == ("E", "READY", "S", "P")
    (scan,) = waiting.scans
    assert [[len(resource.files) for resource in scan.resources], scan.dicom_dump(fields="Modality")[0]["value"]] == [
        [2],
        "CT",
    ]
    waiting.rebuild()
    waiting.move("P")
    (found,) = connection.prearchive.find(project="P")
    session = found.archive(subject="S3", experiment="E3", overwrite="none")
    assert (session.label, session.subject.label, connection.prearchive.sessions()) == ("E3", "S3", [])
    again = connection.services.import_(str(archive), project="P", subject="S4", experiment="E4")
    (scan,) = again.scans
    assert (scan.read_dicom().Modality, scan.dicom_dump(fields="Modality")[0]["value"]) == ("CT", "CT")
    connection.services.refresh_catalog(scan.resources["DICOM"])
    assert len(scan.resources["DICOM"].files) == 2


def test_tables_and_tokens_of_xnatpy(server, connection, project, session):
    connection.clearcache()
    assert [row.label for row in project.subjects.tabulate()] == ["s1"]
    assert project.experiments.tabulate_csv().splitlines()[1].split(",")[4] == "e1"
    assert {(user.login, user.access_level) for user in project.users.values()} >= {("member", "Members")}
    token = connection.services.issue_token()
    with xnat.connect(server.url, user=token.alias, password=token.secret, no_parse_model=True) as other:
        assert other.get("/data/auth").text == "User 'owner' is logged in"


# The calls of xnatpy's own functional tests (xnat/tests/functional_tests and remote_server in its source distribution)


def admin_of(sandbox, **options):
    return xnat.connect(sandbox.url, user="admin", password=sandbox.password, loglevel="ERROR", **options)


def test_projects_come_without_regard_to_capital_letters(xnat_sandbox):
    """test_existing_data.test_list_projects."""
    for name in ("dummydicomproject", "TRAINING", "Atlas"):
        xnat_sandbox.archive.create_project(name)
    with admin_of(xnat_sandbox) as login:
        assert [project.id for project in login.projects.values()] == ["Atlas", "dummydicomproject", "TRAINING"]


def test_ids_begin_with_the_id_of_the_site(xnat_sandbox):
    """xnat4tests sets the ID of its site; test_map.test_map_connection."""
    with admin_of(xnat_sandbox) as login:
        login.post("/xapi/siteConfig", json={"siteId": "Xnat4 Tests"})
        login.put("/data/projects/P")
        subject = login.classes.SubjectData(parent=login.projects["P"], label="s")
        session = login.classes.MrSessionData(parent=subject, label="e")
        login.classes.MrScanData(parent=session, id="6", type="T1")
        address = f"/subjects/{subject.id}/experiments/{session.id}"
        assert (subject.id, session.id) == ("Xnat4Tests_S00001", "Xnat4Tests_E00001")
        found = login.map(lambda item: item.label, level="experiment")
        assert found == {f"/data/archive/projects/P{address}": "e"}
        assert login.projects["P"].map(lambda item: item.type, level="scan") == {
            f"/data/projects/P{address}/scans/6": "T1"
        }
        (scan,) = login.search(level=xnat.MappingLevel.SCAN, subject="s*", experiment="e")
        assert scan.id == "6"
    xnat_sandbox.reset()
    assert xnat_sandbox.archive.create_subject(xnat_sandbox.archive.create_project("P").id, "s").id == "XNAT_S00001"


def test_an_import_takes_the_dicom_out_of_a_zip_of_anything(connection, project, demo_dicom, tmp_path):
    """test_import.test_import_zip_file: the zip of a session has pictures of its scans; no handler is named."""
    archive = tmp_path / "session.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(demo_dicom.cases[1].dicom.rglob("*.dcm"))[:2]:
            target.write(path, f"session/scans/1/DICOM/{path.name}")
        target.writestr("session/scans/1/SNAPSHOTS/1_qc.gif", b"GIF89a")
    made = connection.services.import_(archive, project="P", subject="S", experiment="E", trigger_pipelines=False)
    assert (made.label, made.project, made.subject.label, len(made.scans)) == ("E", "P", "S", 1)
    assert [list(scan.resources["DICOM"].files) for scan in made.scans.values()] != [[]]


def test_a_query_shows_what_was_asked_for(connection, project, session):
    """test_search.test_querying: what is no display field of XNAT's comes back as a column that XNAT makes."""
    sessions = connection.classes.MrSessionData
    query = sessions.query().filter(sessions.label == "e1")
    shown = query.view(sessions.PROJECT, sessions.label)
    assert shown.tabulate_csv() == "project,xnat_col_mrsessiondatalabel,quarantine_status\nP,e1,active\n"
    result = json.loads(shown.tabulate_json())["ResultSet"]
    row = {"project": "P", "xnat_col_mrsessiondatalabel": "e1", "quarantine_status": "active"}
    assert (result["Result"], result["totalRecords"], result["rootElementName"]) == ([row], "1", "xnat:mrSessionData")
    assert result["Columns"][1:] == [
        {
            "key": "xnat_col_mrsessiondatalabel",
            "type": "string",
            "xPATH": "xnat:mrSessionData.XNAT_COL_MRSESSIONDATALABEL",
            "element_name": "xnat:mrSessionData",
            "header": "url",
            "id": "XNAT_COL_MRSESSIONDATALABEL",
        },
        {"key": "quarantine_status"},
    ]
    inserted = sessions.INSERT_DATE
    today = sessions.query().filter(sessions.PROJECT == "P", inserted >= datetime(2020, 1, 1))
    assert [found.id for found in today.all()] == [today.first().id] == [today.last().id] == [session.id]
    assert today.filter(inserted <= datetime(2020, 1, 2)).all() == []


def test_custom_variables_are_searched(connection, project, session):
    session.fields["status"] = "done"
    sessions = connection.classes.MrSessionData
    status = CustomFieldSearchField("xnat:mrSessionData", "status")
    assert [found.label for found in sessions.query().filter(status == "done").all()] == ["e1"]
    (row,) = sessions.query().view(status).tabulate_dict()
    assert row["xnat_mrsessiondata_field_map_status"] == "done"


PROTOCOL = """<xnat:Project xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<xnat:PI><xnat:firstname>Ada</xnat:firstname><xnat:lastname>Wong</xnat:lastname></xnat:PI>
<xnat:studyProtocol xsi:type="xnat:datatypeProtocol" ID="P_xnat_mrSessionData" name="MR Sessions"
data-type="xnat:mrSessionData">
<xnat:definitions><xnat:definition ID="ours" data-type="xnat:mrSessionData" description="d" project-specific="1">
<xnat:fields>
<xnat:field name="grade" datatype="integer" required="0" xmlPath="xnat:mrSessionData/fields/field[name=grade]/field"/>
<xnat:field name="plane" datatype="string" required="0" xmlPath="xnat:mrSessionData/fields/field[name=plane]/field">
<xnat:possibleValues><xnat:possibleValue>axial</xnat:possibleValue></xnat:possibleValues></xnat:field>
</xnat:fields></xnat:definition></xnat:definitions></xnat:studyProtocol></xnat:Project>"""


def test_objects_inside_an_object_are_objects(connection, project, session):
    """test_server_data.test_project_data and test_server_custom_variables.test_custom_variables."""
    connection.put("/data/projects/P", data=PROTOCOL, headers={"Content-Type": "text/xml"})
    session.fields["grade"], session.fields["plane"] = "3", "axial"
    connection.clearcache()
    project = connection.projects["P"]
    assert isinstance(project.pi, connection.classes.InvestigatorData)
    assert (project.pi.firstname, project.pi.lastname) == ("Ada", "Wong")
    protocol = project.study_protocol["P_xnat_mrSessionData"]
    assert (type(protocol), protocol.name) == (connection.classes.DatatypeProtocol, "MR Sessions")
    (group,) = protocol.definitions
    assert (group.id, group.description, group.fields["grade"].datatype) == ("ours", "d", "integer")
    variables = project.experiments["e1"].custom_variables["ours"]
    assert (variables["grade"], variables["plane"]) == (3, "axial")


def test_several_values_of_a_header_are_parted_by_two_backslashes(connection, project, demo_dicom, tmp_path):
    """test_server_parameters.test_scan_parameters."""
    archive = tmp_path / "mr.zip"
    dataset = pydicom.dcmread(sorted(demo_dicom.cases[1].dicom.rglob("*.dcm"))[0])
    dataset.Modality, dataset.ImageType, dataset.ScanOptions = "MR", ["ORIGINAL", "PRIMARY"], ["FAST", "PFF"]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    dataset.save_as(tmp_path / "1.dcm")
    with zipfile.ZipFile(archive, "w") as target:
        target.write(tmp_path / "1.dcm", "1.dcm")
    made = connection.services.import_(archive, project="P", subject="S", experiment="E")
    (scan,) = made.scans
    assert (scan.parameters.image_type, scan.parameters.scan_options) == (r"ORIGINAL\\PRIMARY", r"FAST\\PFF")
