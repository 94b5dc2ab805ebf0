"""Who may do what: owner, member, collaborator, none, admin and guests, in private, protected and public projects."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.claim(
    "sharing and rights", "XnatSecureGuard", "SecureResource", "ProjectAccessibilityResource", "ProjectUserListResource"
)


@pytest.fixture
def everybody(user, made):
    return {login: user(login) for login in ("admin", "owner", "member", "collaborator", "none")}


@pytest.mark.parametrize(
    ("login", "reads", "writes", "deletes"),
    [
        ("admin", 200, 200, 200),
        ("owner", 200, 200, 200),
        ("member", 200, 200, 403),
        ("collaborator", 200, 403, 403),
        ("none", 404, 404, 404),
    ],
)
def test_point_04_roles_in_a_private_project(everybody, made, login, reads, writes, deletes):
    api = everybody[login]
    for path in (made.long, made.scan, made.session, "/data/projects/P/subjects/sub1"):
        assert api.get(path, format="json").status_code == reads
        written = api.put(path, note="x", group="g").status_code
        # With only its ID, an experiment that the user cannot read looks like a new one without a project.
        assert written == (422 if path == made.session and writes == 404 else writes)
    for path in (made.scan, made.long, "/data/projects/P/subjects/sub1"):
        assert api.delete(path).status_code == deletes


@pytest.mark.parametrize(("login", "status"), [("owner", 201), ("member", 201), ("collaborator", 403), ("none", 404)])
def test_making_subjects_and_experiments(everybody, login, status):
    api = everybody[login]
    assert api.put("/data/projects/P/subjects/n").status_code == status
    path = "/data/projects/P/experiments/e"
    assert api.put(path, xsiType="xnat:mrSessionData", subject_ID="n2").status_code == status


def test_point_14_what_cannot_be_read_is_404_and_left_out_of_lists(everybody, made):
    api = everybody["none"]
    for path in ("/data/projects/P", made.long, made.session, made.scan, f"/data/subjects/{made.subject_id}"):
        assert api.get(path, format="json").status_code == 404
    for path in ("/data/projects", "/data/experiments", "/data/subjects"):
        assert api.rows(path) == []
    assert api.get("/data/projects/P/subjects").status_code == 404


def test_a_protected_project_shows_itself_but_not_its_data(everybody, made):
    everybody["admin"].made("/data/projects/P/accessibility/protected")
    api = everybody["none"]
    assert api.get("/data/projects/P", format="json").status_code == 200
    assert [row["ID"] for row in api.rows("/data/projects")] == ["P"]
    for listed in ("subjects", "experiments", "resources"):
        assert api.get(f"/data/projects/P/{listed}").status_code == 403
    for path in (made.long, made.session, "/data/projects/P/subjects/sub1"):
        assert api.get(path, format="json").status_code == 404
    assert api.rows("/data/experiments") == []


def test_a_public_project_can_be_read_by_all_and_written_by_none_of_them(everybody, made):
    everybody["admin"].made("/data/projects/P/accessibility/public")
    api = everybody["none"]
    assert api.get(made.long, format="json").status_code == 200
    assert len(api.rows("/data/projects/P/experiments")) == 1
    assert api.put(made.long, note="x").status_code == 403
    assert api.delete(made.long).status_code == 403
    assert api.get("/xapi/access/projects").json() == []


def test_access_lists_the_projects_with_a_group(everybody):
    row = {"ID": "P", "secondary_ID": "P", "name": "P", "description": "", "URI": "/data/projects/P"}
    for login, role in (("owner", "Owners"), ("member", "Members"), ("collaborator", "Collaborators")):
        listed = everybody[login].get("/xapi/access/projects").json()
        assert listed == [{**row, "role": role, "group_id": f"P_{login}"}]
    assert everybody["none"].get("/xapi/access/projects").json() == []


@pytest.mark.parametrize(("login", "status"), [("owner", 200), ("member", 403), ("collaborator", 403), ("none", 404)])
def test_accessibility_is_for_owners(everybody, login, status):
    assert everybody[login].put("/data/projects/P/accessibility/public").status_code == status


def test_users_of_a_project(everybody):
    owner, admin = everybody["owner"], everybody["admin"]
    rows = owner.rows("/data/projects/P/users")
    assert set(rows[0]) == {"GROUP_ID", "displayname", "login", "firstname", "lastname", "email"}
    assert ("P_member", "Members", "member") in {(row["GROUP_ID"], row["displayname"], row["login"]) for row in rows}
    assert everybody["collaborator"].get("/data/projects/P/users").status_code == 403
    assert everybody["member"].put("/data/projects/P/users/Owners/none").status_code == 403
    assert owner.put("/data/projects/P/users/Collaborators/none").status_code == 200
    assert everybody["none"].get("/data/projects/P", format="json").status_code == 200
    assert owner.delete("/data/projects/P/users/Collaborators/none").status_code == 200
    assert everybody["none"].get("/data/projects/P", format="json").status_code == 404
    assert admin.get("/data/projects/nowhere/users").status_code == 404
    assert owner.put("/data/projects/P/users/Members/stranger").status_code == 404


def test_a_project_belongs_to_who_made_it(everybody):
    everybody["none"].made("/data/projects/MINE")
    assert everybody["none"].delete("/data/projects/MINE").status_code == 200


def test_a_hidden_project_cannot_be_taken_over(everybody):
    everybody["none"].made("/data/projects/HIDDEN")
    for login in ("owner", "member"):
        everybody["admin"].delete(f"/data/projects/HIDDEN/users/{login.capitalize()}s/{login}")
    assert everybody["member"].put("/data/projects/HIDDEN", name="x").status_code == 403
    assert everybody["member"].delete("/data/projects/HIDDEN").status_code == 403


# Sharing


@pytest.fixture
def other(admin, made):
    admin.made("/data/projects/Q")
    return made


@pytest.mark.parametrize("asked", [{}, {"label": "s1q"}], ids=["same label", "own label"])
def test_a_session_can_be_shared_without_its_subject(admin, other, asked):
    """xnat-rest-tests TestSharing: the session is in the project, but a path through the subject does not exist."""
    assert admin.put(f"{other.long}/projects/Q", **asked).status_code == 200
    label = asked.get("label", "s1")
    assert [row["label"] for row in admin.rows("/data/projects/Q/experiments")] == [label]
    assert admin.rows("/data/projects/Q/subjects") == []
    for subject in ("sub1", other.subject_id):
        for session in (label, other.session_id):
            long = f"/data/projects/Q/subjects/{subject}/experiments/{session}"
            for path in (long, f"{long}/scans", f"{long}/scans/1", f"{long}/scans/1/resources", f"{long}/assessors"):
                assert admin.get(path, format="json").status_code == 404, path
            file = f"{long}/scans/1/resources/R/files/a"
            assert admin.put(file, b"x").status_code == 404
    for session in (label, other.session_id):
        path = f"/data/projects/Q/experiments/{session}"
        assert admin.get(path, format="json").json()["items"][0]["data_fields"]["ID"] == other.session_id
        assert admin.get(f"{path}/scans", format="json").status_code == 400
        assert admin.get(f"{path}/resources", format="json").status_code == 200
    assert [row["ID"] for row in admin.rows(f"{other.session}/scans")] == ["1"]
    admin.made(f"{other.session}/scans/1/resources/R/files/a", b"x")
    assert admin.get(f"{other.session}/scans/1/resources/R/files/a").content == b"x"


def test_a_session_is_shared_after_its_subject(admin, other):
    assert admin.put("/data/projects/P/subjects/sub1/projects/Q", label="new").status_code == 200
    assert admin.put(f"{other.long}/projects/Q", label="s1q").status_code == 200
    fields = admin.get("/data/projects/Q/subjects/new/experiments/s1q", format="json").json()["items"][0]["data_fields"]
    assert (fields["ID"], fields["project"]) == (other.session_id, "P")
    rows = {(row["ID"], row["label"]) for row in admin.rows(f"{other.long}/projects")}
    assert rows == {("P", "s1"), ("Q", "s1q")}


@pytest.mark.parametrize("kind", ["/data/projects/P/subjects/sub1", "/data/projects/P/subjects/sub1/experiments/s1"])
def test_shares_that_are_refused(admin, user, other, kind):
    admin.made("/data/projects/P/subjects/sub1/projects/Q", label="s")
    admin.made("/data/projects/Q/subjects/taken")
    admin.made("/data/projects/Q/subjects/taken/experiments/taken", xsiType="xnat:mrSessionData")
    assert admin.put(f"{kind}/projects/nowhere").status_code == 404
    assert admin.put(f"{kind}/projects/P").status_code == 409
    assert user("collaborator").put(f"{kind}/projects/Q").status_code == 403
    if kind.endswith("s1"):
        assert admin.put(f"{kind}/projects/Q", label="taken").status_code == 409
    else:
        assert admin.put(f"{kind}/projects/Q").status_code == 409


def test_deleting_through_a_project_that_it_is_shared_into_unshares(admin, other):
    admin.made("/data/projects/P/subjects/sub1/projects/Q")
    admin.made(f"{other.long}/projects/Q")
    assert admin.delete("/data/projects/Q/subjects/sub1/experiments/s1").status_code == 200
    assert admin.rows("/data/projects/Q/experiments") == []
    assert admin.get(other.session, format="json").status_code == 200
    assert admin.delete("/data/projects/Q/subjects/sub1", removeFiles="true").status_code == 200
    assert admin.get("/data/projects/P/subjects/sub1", format="json").status_code == 200


def test_what_is_shared_can_be_read_in_either_project(admin, user, other):
    admin.made("/data/projects/P/subjects/sub1/projects/Q")
    admin.made(f"{other.long}/projects/Q")
    admin.made("/data/projects/Q/accessibility/public")
    reader = user("none")
    assert reader.get("/data/projects/Q/experiments/s1", format="json").status_code == 200
    assert reader.get(other.session, format="json").status_code == 200
    assert reader.get(other.long, format="json").status_code == 404
    assert [row["label"] for row in reader.rows("/data/experiments")] == ["s1"]
    assert reader.put(other.session, note="x").status_code == 403


def test_primary_moves_an_object(admin, other):
    admin.made("/data/projects/P/subjects/sub1/projects/Q")
    admin.made(f"{other.long}/projects/Q", primary="true")
    fields = admin.get(other.session, format="json").json()["items"][0]["data_fields"]
    assert fields["project"] == "Q"


def test_an_experiment_of_another_project_is_a_conflict_by_path_and_a_share_by_content(admin, other):
    path = f"/data/projects/Q/experiments/{other.session_id}"
    assert admin.put(path, xsiType="xnat:ctSessionData", subject_ID="x").status_code == 409
    named = {"xsiType": "xnat:ctSessionData", "xnat:ctSessionData/ID": other.session_id}
    assert admin.put("/data/projects/Q/experiments/here", **named).text == other.session_id
    assert [row["label"] for row in admin.rows("/data/projects/Q/experiments")] == ["here"]


def test_renaming_through_a_project_that_it_is_shared_into_renames_it_there(admin, other):
    admin.made("/data/projects/P/subjects/sub1/projects/Q")
    admin.made("/data/projects/Q/subjects/sub1", label="elsewhere")
    assert [row["label"] for row in admin.rows("/data/projects/Q/subjects")] == ["elsewhere"]
    assert [row["label"] for row in admin.rows("/data/projects/P/subjects")] == ["sub1"]


def test_scans_can_be_shared(admin, other):
    assert admin.put(f"{other.scan}/projects/Q").status_code == 200
    assert {row["ID"] for row in admin.rows(f"{other.scan}/projects")} == {"P", "Q"}
    assert admin.delete(f"{other.scan}/projects/Q").status_code == 200
