"""Custom fields below /xapi/custom-fields (xnat-rest.md 12)."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.claim("custom fields", "CustomFieldsApi")

BASE = "/xapi/custom-fields"


def put(api, path: str, fields, kind: str = "application/json"):
    return api.put(path, json.dumps(fields), kind=kind)


@pytest.fixture
def paths(admin, made) -> dict[str, str]:
    """All forms of addresses for each kind of object."""
    item = admin.made(f"{made.long}/assessors/A", xsiType="xnat:qcAssessmentData")
    return {
        "project": "/projects/P",
        "subject": "/projects/P/subjects/sub1",
        "subject by ID": f"/subjects/{made.subject_id}",
        "session": "/projects/P/experiments/s1",
        "session below subject": "/projects/P/subjects/sub1/experiments/s1",
        "session by ID": f"/experiments/{made.session_id}",
        "scan": "/projects/P/experiments/s1/scans/1",
        "scan below subject": "/projects/P/subjects/sub1/experiments/s1/scans/1",
        "scan by session ID": f"/experiments/{made.session_id}/scans/1",
        "assessor": "/projects/P/experiments/s1/assessors/A",
        "assessor by IDs": f"/experiments/{made.session_id}/assessors/{item}",
    }


def test_every_kind_of_object_has_fields(admin, paths):
    for number, path in enumerate(paths.values()):
        address = f"{BASE}{path}/fields"
        answer = put(admin, address, {f"n{number}": number})
        assert (answer.status_code, answer.json()[f"n{number}"]) == (200, number), path
    fields = {name: set(admin.get(f"{BASE}{path}/fields").json()) for name, path in paths.items()}
    assert fields["project"] == {"n0"}
    assert fields["subject"] == fields["subject by ID"] == {"n1", "n2"}
    assert fields["session"] == fields["session below subject"] == fields["session by ID"] == {"n3", "n4", "n5"}
    assert fields["scan"] == fields["scan below subject"] == fields["scan by session ID"] == {"n6", "n7", "n8"}
    assert fields["assessor"] == fields["assessor by IDs"] == {"n9", "n10"}


def test_put_merges_and_delete_answers_the_rest(admin, made):
    address = f"{BASE}/projects/P/experiments/s1/scans/1/fields"
    assert admin.get(address).json() == {}
    put(admin, address, {"a": 1, "b": {"x": [1, None]}, "c": "text"})
    assert put(admin, address, {"a": None, "b": {"y": 2}}).json() == {"a": None, "b": {"y": 2}, "c": "text"}
    assert admin.get(address, fieldNames="b,c,none").json() == {"b": {"y": 2}, "c": "text"}
    one = admin.get(f"{address}/c")
    assert (one.text, one.headers["content-type"].partition(";")[0]) == ("text", "text/plain")
    assert json.loads(admin.get(f"{address}/b").text) == {"y": 2}
    assert admin.delete(f"{address}/b").json() == {"a": None, "c": "text"}
    assert admin.delete(f"{address}/b").status_code == 404
    assert admin.get(f"{address}/b").status_code == 404


def test_refusals(admin, made):
    address = f"{BASE}/projects/P/fields"
    assert put(admin, address, {}, kind="text/plain").status_code == 415
    assert put(admin, address, ["no object"]).status_code == 400
    assert admin.put(address, b"{", kind="application/json").status_code == 400
    assert admin.post(address, b"{}", kind="application/json").status_code == 405
    assert admin.delete(address).status_code == 405
    for path in ("/projects/Q", "/projects/P/subjects/none", "/experiments/none", "/projects/P/experiments/s1/scans/9"):
        answer = admin.get(f"{BASE}{path}/fields")
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (404, "text/plain")


def test_who_may_do_what(user, made):
    address = f"{BASE}/projects/P/experiments/s1/scans/1/fields"
    member, reader, nobody = user("member"), user("collaborator"), user("none")
    assert put(member, address, {"a": 1}).status_code == 200
    assert reader.get(address).json() == {"a": 1}
    assert put(reader, address, {"a": 2}).status_code == 403
    assert reader.delete(f"{address}/a").status_code == 403
    assert nobody.get(address).status_code == 403
    assert put(nobody, address, {"a": 2}).status_code == 403
    assert member.delete(f"{address}/a").json() == {}
