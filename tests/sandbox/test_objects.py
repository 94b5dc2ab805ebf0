"""Projects, subjects, experiments, assessors and scans: routes, statuses, fields, renames, deletions."""

from __future__ import annotations

import re

import pytest
from lxml import etree

pytestmark = pytest.mark.claim(
    "objects",
    "ProjectResource",
    "SubjectResource",
    "SubjAssessmentResource",
    "ExptAssessmentResource",
    "ScanResource",
    "ItemJSONBuilder",
    "SAXWriter",
)

MR = {"xsiType": "xnat:mrSessionData"}
CT_SCAN = {"xsiType": "xnat:ctScanData"}
SPACES = {"xnat": "http://nrg.wustl.edu/xnat"}


def item(api, path):
    answer = api.get(path, format="json")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"][0]


def children(node, name):
    return [entry for child in node["children"] if child["field"] == name for entry in child["items"]]


# Routes


@pytest.mark.parametrize("root", ["/data", "/data/archive", "/REST", "/REST/archive", "/fs"])
def test_every_root_leads_to_the_same_objects(admin, made, root):
    for path in (
        "/projects/P",
        "/projects/P/subjects/sub1",
        f"/subjects/{made.subject_id}",
        "/projects/P/subjects/sub1/experiments/s1",
        "/projects/P/experiments/s1",
        f"/experiments/{made.session_id}",
        f"/experiments/{made.session_id}/scans/1",
        "/projects/P/subjects/sub1/experiments/s1/scans/1",
    ):
        assert admin.get(root + path, format="json").status_code == 200, path


@pytest.mark.parametrize(
    "path",
    [
        "/data/subjects/sub1",
        "/data/experiments/s1",
        "/data/projects/P/subjects/nobody",
        "/data/projects/P/experiments/nothing",
        "/data/projects/nowhere",
        "/data/projects/P/subjects/sub1/experiments/s1/scans/2",
        "/data/projects/P/subjects/nobody/experiments",
        "/data/nothing",
        "/nothing",
    ],
)
def test_what_is_not_there_is_404(admin, made, path):
    assert admin.get(path, format="json").status_code == 404


def test_a_label_stands_for_an_id_only_inside_a_project(admin, made):
    assert item(admin, "/data/projects/P/experiments/s1")["data_fields"]["ID"] == made.session_id
    assert admin.get("/data/experiments/s1", format="json").status_code == 404


@pytest.mark.parametrize("rest", ["scans", "scans/1", "scans/1/resources", "assessors", "scans/1/resources/R/files/a"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_project_experiment_has_no_scans_below_it(admin, made, rest, method):
    assert admin.ask(method, f"/data/projects/P/experiments/s1/{rest}").status_code in (400, 405)
    assert admin.get("/data/projects/P/experiments/s1", format="json").status_code == 200


def test_subject_without_project_has_no_experiments_below_it(admin, made):
    assert admin.get(f"/data/subjects/{made.subject_id}/experiments").status_code == 400


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_method_that_an_object_does_not_know_is_405(admin, made, method):
    answer = admin.ask(method, "/data/projects/P/subjects/sub1")
    assert answer.status_code == 405
    assert "PUT" in answer.headers["Allow"]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_list_cannot_be_put_or_deleted(admin, made, method):
    assert admin.ask(method, "/data/projects/P/subjects").status_code == 405


# Formats


def test_point_11_items_are_html_without_format_json(admin, made):
    plain = admin.get(made.long)
    assert plain.headers["Content-Type"].startswith("text/html")
    assert plain.text.startswith("<html>")
    assert admin.get(made.long, headers={"Accept": "application/json"}).status_code == 406
    assert admin.get(made.long, format="json").headers["Content-Type"].startswith("application/json")


def test_an_item_is_xml_where_xml_is_accepted_or_asked_for(admin, made):
    for answer in (admin.get(made.long, headers={"Accept": "text/xml"}), admin.get(made.long, format="xml")):
        assert answer.headers["Content-Type"].startswith("text/xml")


def test_lists_are_json_unless_something_else_is_asked_for(admin, made):
    path = "/data/projects/P/subjects"
    assert admin.get(path).headers["Content-Type"].startswith("application/json")
    assert admin.get(path, headers={"Accept": "text/html, */*;q=0.1"}).text.startswith("<html>")
    assert admin.get(path, headers={"Accept": "text/html"}, format="json").json()
    head, *lines = admin.get(path, format="csv").text.splitlines()
    assert head.split(",") == ["ID", "project", "label", "insert_date", "insert_user", "URI"]
    assert len(lines) == 1
    table = etree.fromstring(admin.get(path, format="xml").content)
    assert table.xpath("string(//column[3])") == "label"
    assert table.xpath("string(//cell[3])") == "sub1"


def test_error_pages_have_their_message_in_a_heading(admin, made):
    page = admin.get("/data/experiments/nothing", format="json")
    assert re.search("<h3>(.*)</h3>", page.text)[1] == "Unable to find the specified experiment."
    assert page.headers["Content-Type"].startswith("text/html")


def test_head_has_the_headers_of_get_and_no_body(admin, made):
    got, head = admin.get(made.long, format="json"), admin.ask("HEAD", made.long, format="json")
    assert head.headers["Content-Length"] == got.headers["Content-Length"]
    assert head.content == b""


# Item JSON and XML


def test_json_values_are_typed_and_fields_without_value_absent(admin, made):
    admin.made(made.scan, **{"xnat:ctScanData/frames": "12", "xnat:ctScanData/parameters/kvp": "120.5"})
    fields = item(admin, made.scan)["data_fields"]
    assert fields["frames"] == 12
    assert fields["parameters/kvp"] == 120.5
    assert fields["image_session_ID"] == made.session_id
    assert "quality" not in fields


def test_json_of_a_session_nests_its_scans(admin, made):
    node = item(admin, made.session)
    assert node["meta"]["xsi:type"] == "xnat:ctSessionData"
    assert node["meta"]["isHistory"] is False
    assert re.fullmatch(r"\w{3} \w{3} \d\d \d\d:\d\d:\d\d UTC \d{4}", node["meta"]["start_date"])
    assert node["data_fields"]["subject_ID"] == made.subject_id
    assert [scan["data_fields"]["ID"] for scan in children(node, "scans/scan")] == ["1"]


def test_xml_has_its_elements_in_the_order_of_the_schema(admin, made):
    admin.made(made.scan, quality="usable", note="n", UID="1.2", **{"xnat:ctScanData/parameters/kvp": "120"})
    admin.made(made.long, note="x", date="2024-06-24", UID="1.2.3", scanner="S")
    root = etree.fromstring(admin.get(made.long, format="xml").content)
    assert root.tag == "{http://nrg.wustl.edu/xnat}CTSession"
    assert (root.get("ID"), root.get("project"), root.get("label")) == (made.session_id, "P", "s1")
    names = [etree.QName(child).localname for child in root if isinstance(child.tag, str)]
    assert names == ["date", "note", "subject_ID", "scanner", "scans"]
    scan = root.find("xnat:scans/xnat:scan", SPACES)
    assert (scan.get("ID"), scan.get("type"), scan.get("UID")) == ("1", "T1 w/contrast", "1.2")
    assert [etree.QName(child).localname for child in scan if isinstance(child.tag, str)] == [
        "note",
        "quality",
        "parameters",
    ]


def test_xml_tells_hidden_fields_in_comments_unless_concealed(admin, made):
    assert "hidden_fields[" in admin.get(made.long, format="xml").text
    assert "hidden_fields[" not in admin.get(made.long, format="xml", concealHiddenFields="true").text


def test_xml_points_to_catalogs_on_the_disk_of_the_server(admin, made):
    admin.made(f"{made.scan}/resources/DICOM/files/a.dcm", b"x", format="DICOM")
    file = etree.fromstring(admin.get(made.long, format="xml").content).find(".//xnat:scan/xnat:file", SPACES)
    assert file.get("label") == "DICOM"
    assert re.fullmatch(r"/.*/P/arc001/s1/SCANS/1/.*_catalog.xml", file.get("URI"))
    assert file.get("{http://www.w3.org/2001/XMLSchema-instance}type") == "xnat:resourceCatalog"


def test_what_comes_in_is_escaped_as_in_html(admin, made):
    admin.made(made.long, note='a<b & "c"')
    assert item(admin, made.long)["data_fields"]["note"] == "a&lt;b &amp; &quot;c&quot;"


# Projects


def test_point_06_project_put_answers_200_and_nothing_for_create_too(admin):
    for _ in range(2):
        answer = admin.put("/data/projects/N1", name="Name", description="text")
        assert (answer.status_code, answer.text) == (200, "")
    fields = item(admin, "/data/projects/N1")["data_fields"]
    assert (fields["name"], fields["description"], fields["secondary_ID"]) == ("Name", "text", "N1")


def test_point_06_scan_put_answers_200_and_nothing_for_create_too(admin, made):
    for _ in range(2):
        answer = admin.put(f"{made.long}/scans/9", xsiType="xnat:ctScanData", type="X")
        assert (answer.status_code, answer.text) == (200, "")


def test_point_06_subject_experiment_and_assessor_put_answer_the_id_201_then_200(admin, made):
    for path, kind in (
        ("/data/projects/P/subjects/n", {}),
        ("/data/projects/P/subjects/n/experiments/e", MR),
        (f"{made.long}/assessors/a", {"xsiType": "xnat:qcManualAssessorData"}),
    ):
        first, second = admin.put(path, **kind), admin.put(path, **kind)
        assert (first.status_code, second.status_code) == (201, 200)
        assert first.text == second.text == item(admin, path)["data_fields"]["ID"]
        assert re.fullmatch(r"XNAT_[SE]\d{5}", first.text)


@pytest.mark.parametrize("query", [{"name": "Taken"}, {"secondary_ID": "short"}, {"xnat:projectData/name": "Taken"}])
def test_project_names_are_given_once(admin, query):
    admin.made("/data/projects/A1", name="Taken", secondary_ID="short")
    assert admin.put("/data/projects/B1", **query).status_code == 409
    assert admin.get("/data/projects/B1", format="json").status_code == 404


def test_an_alias_leads_to_its_project(admin, made):
    admin.made("/data/projects/P", alias="other")
    assert item(admin, "/data/projects/other")["data_fields"]["ID"] == "P"
    assert admin.rows("/data/projects/other/subjects")[0]["label"] == "sub1"


@pytest.mark.parametrize("name", ["a b", "a.b", "ä"])
def test_a_project_id_has_no_odd_characters(admin, name):
    assert admin.put(f"/data/projects/{name}").status_code == 417


def test_a_deleted_project_id_is_not_given_again(admin, made):
    assert admin.delete("/data/projects/P", removeFiles="true").status_code == 200
    assert admin.get("/data/projects/P", format="json").status_code == 404
    assert admin.put("/data/projects/P").status_code == 403
    assert admin.get(made.session, format="json").status_code == 404


def test_point_14_deleting_a_missing_project_is_400(admin):
    assert admin.delete("/data/projects/nowhere").status_code == 400


def test_posting_a_project_answers_its_address(admin):
    answer = admin.post("/data/projects", ID="POSTED")
    assert answer.status_code == 200
    assert answer.text == answer.headers["Location"] == f"{admin.url}/data/projects/POSTED"
    assert admin.post("/data/projects", ID="POSTED").status_code == 409
    assert admin.post("/data/projects", name="no ID").status_code == 417


def test_accessibility_is_read_and_set_as_text(admin, made):
    assert admin.get("/data/projects/P/accessibility").text == "private"
    for level in ("public", "protected", "private"):
        assert admin.put(f"/data/projects/P/accessibility/{level}").status_code == 200
        assert admin.get("/data/projects/P/accessibility").text == level
    assert admin.put("/data/projects/P/accessibility/secret").status_code == 400


def test_the_prearchive_code_can_be_set(admin, made):
    assert admin.put("/data/projects/P/prearchive_code/0").status_code == 200
    assert admin.get("/data/projects/P/prearchive_code").text == "0"
    assert admin.put("/data/projects/P/prearchive_code/seven").status_code == 400


# Subjects


def test_subject_demographics_are_an_object_of_their_own(admin, made):
    path = "/data/projects/P/subjects/sub1"
    admin.made(path, gender="F", **{"xnat:subjectData/demographics[@xsi:type=xnat:demographicData]/yob": "1960"})
    demographics = children(item(admin, path), "demographics")[0]
    assert demographics["meta"]["xsi:type"] == "xnat:demographicData"
    assert demographics["data_fields"] == {"gender": "F", "yob": 1960}
    assert admin.rows("/data/projects/P/subjects", columns="label,gender,yob")[0]["yob"] == "1960"


def test_point_07_label_on_an_existing_subject_is_a_rename_only(admin, made):
    answer = admin.put("/data/projects/P/subjects/sub1", label="new", group="g")
    assert (answer.status_code, answer.text) == (200, "")
    fields = item(admin, "/data/projects/P/subjects/new")["data_fields"]
    assert fields["ID"] == made.subject_id
    assert "group" not in fields
    assert admin.get("/data/projects/P/subjects/sub1", format="json").status_code == 404


def test_point_07_label_on_an_existing_experiment_is_a_rename_only(admin, made):
    answer = admin.put("/data/projects/P/experiments/s1", label="renamed", note="lost")
    assert (answer.status_code, answer.text) == (200, "")
    fields = item(admin, "/data/projects/P/experiments/renamed")["data_fields"]
    assert fields["ID"] == made.session_id
    assert "note" not in fields


def test_files_stay_readable_after_a_rename(admin, made):
    admin.made(f"{made.scan}/resources/R/files/a.txt", b"text")
    admin.made("/data/projects/P/subjects/sub1", label="other")
    admin.made("/data/projects/P/experiments/s1", label="renamed")
    found = admin.get("/data/projects/P/subjects/other/experiments/renamed/scans/1/resources/R/files/a.txt")
    assert found.content == b"text"


def test_a_label_is_given_once_in_a_project(admin, made):
    admin.made("/data/projects/P/subjects/sub2")
    admin.made("/data/projects/P/subjects/sub2/experiments/s2", **MR)
    assert admin.put("/data/projects/P/subjects/sub2", label="sub1").status_code == 409
    assert admin.put("/data/projects/P/experiments/s2", label="s1").status_code == 409
    assert admin.put("/data/projects/P/subjects/sub2/experiments/s1", **MR).status_code == 409
    assert admin.put(f"{made.long}/assessors/s2", xsiType="xnat:qcManualAssessorData").status_code == 409


def test_a_subject_needs_a_project(admin):
    assert admin.put("/data/subjects/nobody").status_code == 422


def test_posting_to_lists_answers_addresses(admin, made):
    answer = admin.post("/data/projects/P/subjects", label="posted")
    assert answer.status_code == 200
    assert answer.headers["Location"] == answer.text
    assert item(admin, answer.text[len(admin.url) :])["data_fields"]["label"] == "posted"
    assert admin.post("/data/projects/P/subjects", label="posted").status_code == 409
    answer = admin.post("/data/projects/P/subjects/posted/experiments", label="e", **MR)
    assert item(admin, answer.text[len(admin.url) :])["data_fields"]["label"] == "e"
    assert admin.post(f"{made.long}/scans", ID="1", **CT_SCAN).status_code == 409
    assert admin.post(f"{made.long}/scans", ID="2", **CT_SCAN).text.endswith("/scans/2")


# Experiments


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/data/projects/P/subjects/sub1/experiments/n", {}, 417),
        ("/data/projects/P/subjects/sub1/experiments/n", {"xsiType": "xnat:nonsenseData"}, 400),
        ("/data/projects/P/subjects/sub1/experiments/n", {"xsiType": "xnat:imageSessionData"}, 400),
        ("/data/projects/P/subjects/sub1/experiments/n", {"xsiType": "xnat:qcManualAssessorData"}, 422),
        ("/data/projects/P/subjects/sub1/experiments/n", {"xsiType": "xnat:subjectData"}, 422),
        ("/data/projects/P/subjects/sub1/experiments/n*", MR, 417),
        ("/data/projects/P/subjects/sub1/experiments/n", {**MR, "xnat:mrSessionData/date": "yesterday"}, 400),
        ("/data/projects/P/subjects/sub1/experiments/n", {**MR, "date": "2024-02-31"}, 400),
        ("/data/projects/P/subjects/sub1/experiments/n", {**MR, "xnat:mrSessionData/label": "m"}, 400),
        ("/data/projects/P/experiments/n", MR, 422),
        ("/data/experiments/n", MR, 422),
        ("/data/projects/nowhere/experiments/n", MR, 404),
    ],
)
def test_new_experiments_that_are_refused(admin, made, path, query, status):
    assert admin.put(path, **query).status_code == status
    assert [row["label"] for row in admin.rows("/data/projects/P/experiments")] == ["s1"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/data/projects/P/experiments/n", {**MR, "subject_ID": "fresh"}),
        ("/data/projects/P/experiments/n", {**MR, "xnat:mrSessionData/subject_ID": "fresh"}),
        ("/data/projects/P/subjects/fresh/experiments/n", MR),
    ],
)
def test_an_unknown_subject_is_made_with_its_experiment(admin, made, path, query):
    assert admin.put(path, **query).status_code == 201
    rows = admin.rows("/data/projects/P/experiments", columns="label,subject_label")
    assert {(row["label"], row["subject_label"]) for row in rows} == {("s1", "sub1"), ("n", "fresh")}


@pytest.mark.parametrize("name", ["ID", "label", "project"])
def test_what_names_an_experiment_cannot_be_changed_by_fields(admin, made, name):
    assert admin.put(made.long, **{f"xnat:ctSessionData/{name}": "other"}).status_code == 400


def test_dates_are_taken_in_both_spellings(admin, made):
    admin.made(made.long, **{"xnat:ctSessionData/date": "06/24/2024"})
    assert item(admin, made.long)["data_fields"]["date"] == "2024-06-24"
    admin.made(made.long, date="2024-06-25")
    assert item(admin, made.long)["data_fields"]["date"] == "2024-06-25"


def test_null_clears_a_field(admin, made):
    admin.made(made.long, note="x")
    admin.made(made.long, note="NULL")
    assert "note" not in item(admin, made.long)["data_fields"]


def test_custom_variables_are_kept_by_name(admin, made):
    path = "xnat:ctSessionData/fields/field[name={}]/field"
    admin.made(made.long, **{path.format("status"): "open"})
    admin.made(made.long, **{path.format("reader"): "ann"})
    admin.made(made.long, **{path.format("status"): "done"})
    found = {
        node["data_fields"]["name"]: node["data_fields"]["field"]
        for node in children(item(admin, made.long), "fields/field")
    }
    assert found == {"status": "done", "reader": "ann"}
    column = "xnat:ctsessiondata/fields/field[name=status]/field"
    assert admin.rows("/data/projects/P/experiments", columns=f"ID,{column}")[0][column] == "done"


def test_status_follows_quarantine_lock_and_activate(admin, made):
    assert admin.get(f"{made.long}/status").text == "active"
    for action, status in (("quarantine", "quarantine"), ("activate", "active"), ("_lock", "locked")):
        assert admin.put(made.long, **{action: "true"}).status_code == 200
        assert admin.get(f"{made.long}/status").text == status
    assert admin.put(made.long, note="x").status_code == 403
    assert admin.put(made.scan, quality="usable").status_code == 403
    admin.made(made.long, _unlock="true")
    assert admin.put(made.long, note="x").status_code == 200


def test_a_document_sets_fields(admin, made):
    document = f"""<xnat:CTSession xmlns:xnat="{SPACES["xnat"]}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
        project="P" label="x1"><xnat:date>2020-01-01</xnat:date><xnat:note>n</xnat:note>
        <xnat:fields><xnat:field name="status">done</xnat:field></xnat:fields>
        <xnat:scans><xnat:scan ID="4" type="A" xsi:type="xnat:ctScanData"><xnat:quality>usable</xnat:quality>
        <xnat:parameters><xnat:kvp>100</xnat:kvp></xnat:parameters></xnat:scan></xnat:scans></xnat:CTSession>"""
    answer = admin.put("/data/projects/P/subjects/sub1/experiments/x1", document.encode(), "text/xml")
    assert answer.status_code == 201, answer.text
    node = item(admin, "/data/projects/P/experiments/x1")
    assert (node["data_fields"]["date"], node["data_fields"]["note"]) == ("2020-01-01", "n")
    scan = children(node, "scans/scan")[0]["data_fields"]
    assert (scan["ID"], scan["quality"], scan["parameters/kvp"]) == ("4", "usable", 100.0)


@pytest.mark.parametrize(
    ("path", "tag", "status"),
    [
        ("/data/projects/P/subjects/d", "Subject", 201),
        ("/data/projects/D", "Project", 200),
        ("/data/projects/P/subjects/sub1/experiments/s1/scans/8", "CTScan", 200),
        ("/data/projects/P/subjects/e", "CTSession", 422),
        ("/data/projects/P/subjects/e", "Nonsense", 400),
    ],
)
def test_documents_of_other_objects(admin, made, path, tag, status):
    document = f'<xnat:{tag} xmlns:xnat="{SPACES["xnat"]}"/>'
    assert admin.put(path, document.encode(), "text/xml").status_code == status


@pytest.mark.parametrize("document", [b"<broken", b"\xff\xfe"])
def test_broken_documents_are_400(admin, made, document):
    assert admin.put("/data/projects/P/subjects/x", document, "text/xml").status_code == 400


def test_a_project_document_names_the_project_of_the_path(admin):
    document = f'<xnat:Project xmlns:xnat="{SPACES["xnat"]}" ID="OTHER"/>'
    assert admin.put("/data/projects/D", document.encode(), "text/xml").status_code == 417


# Scans


@pytest.mark.parametrize(
    ("scan", "query", "status"),
    [
        ("n", {}, 417),
        ("n", {"type": "T1"}, 400),
        ("n", {"xsiType": "xnat:imageScanData"}, 400),
        ("n", {"xsiType": "xnat:ctSessionData"}, 400),
        ("n", {"xsiType": "xnat:nonsense"}, 400),
        ("1", {"xsiType": "xnat:mrScanData"}, 409),
        ("1", {"xsiType": "xnat:ctScanData", "xnat:mrScanData/type": "ignored"}, 200),
    ],
)
def test_scan_puts(admin, made, scan, query, status):
    assert admin.put(f"{made.long}/scans/{scan}", **query).status_code == status
    assert [row["type"] for row in admin.rows(f"{made.session}/scans")] == ["T1 w/contrast"]


def test_scan_parameters_of_ones_own(admin, made):
    admin.made(made.scan, **{"xsiType": "xnat:ctScanData", "xnat:ctScanData/parameters/addParam[name=x]/addField": "v"})
    assert children(item(admin, made.scan), "parameters/addParam")[0]["data_fields"] == {"name": "x", "addField": "v"}


def test_a_scan_as_an_object_goes_by_its_id_alone(admin, made):
    admin.made(f"{made.long}/scans/2", type="LOC", **CT_SCAN)
    assert admin.get(f"{made.long}/scans/LOC", format="json").status_code == 404
    assert admin.get(f"{made.long}/scans/ALL", format="json").status_code == 404


# Assessors


def test_assessors_are_experiments_too(admin, made):
    number = admin.made(f"{made.long}/assessors/a1", xsiType="xnat:qcManualAssessorData")
    for path in (f"{made.long}/assessors/a1", f"{made.session}/assessors/{number}", f"/data/experiments/{number}"):
        assert item(admin, path)["data_fields"]["imageSession_ID"] == made.session_id
    assert admin.get(f"{made.session}/assessors/a1", format="json").status_code == 404
    assert children(item(admin, made.long), "assessors/assessor")[0]["data_fields"]["ID"] == number


@pytest.mark.parametrize(
    ("kind", "status"),
    [(None, 417), ("xnat:imageAssessorData", 400), ("xnat:mrSessionData", 422), ("xnat:nonsense", 400)],
)
def test_new_assessors_that_are_refused(admin, made, kind, status):
    assert admin.put(f"{made.long}/assessors/n", **({"xsiType": kind} if kind else {})).status_code == status


# Deleting


def test_deleting_a_session_takes_all_that_hangs_on_it(admin, made):
    admin.made(f"{made.scan}/resources/R/files/a.txt", b"x")
    number = admin.made(f"{made.long}/assessors/a1", xsiType="xnat:qcManualAssessorData")
    assert admin.delete(made.long, removeFiles="true").status_code == 200
    assert admin.delete(made.long).status_code == 404
    assert admin.get(f"/data/experiments/{number}", format="json").status_code == 404
    assert admin.rows("/data/projects/P/experiments") == []
    assert admin.get("/data/projects/P/subjects/sub1", format="json").status_code == 200


def test_deleting_a_subject_takes_its_sessions(admin, made):
    assert admin.delete("/data/projects/P/subjects/sub1").status_code == 200
    assert admin.get(made.session, format="json").status_code == 404


def test_deleting_scans_one_by_one(admin, made):
    assert admin.delete(made.scan).status_code == 200
    assert admin.delete(made.scan).status_code == 404
    assert admin.rows(f"{made.session}/scans") == []


def test_a_new_object_may_take_the_name_of_a_deleted_one(admin, made):
    admin.delete(made.long)
    assert admin.put(made.long, **MR).status_code == 201
