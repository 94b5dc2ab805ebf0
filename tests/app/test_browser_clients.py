"""The requests of viewers in a browser: the XNAT-OHIF viewer, and the OHIF viewer that comes with MONAI Label."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from clinic import SHAPE, clinic, read_voxels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ORIGIN = {"Origin": "https://xnat.example.org"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with clinic(tmp_path_factory.mktemp("browser"), login="owner") as served:
        yield served


def infer(server, model, image, output="image", **params):
    form = {"params": (None, json.dumps(params))}
    query = {"image": image, "output": output}
    return server.call("POST", f"/infer/{model}", params=query, files=form, headers=ORIGIN)


# XNAT-OHIF viewer


def test_the_viewer_knows_the_datastore_by_the_info_of_its_own_id(server):
    project, subject, experiment, scan = server.image().split("/")
    assert experiment.startswith("XNAT_E")
    answer = server.call("GET", "/datastore/image/info/", params={"image": server.image()}, headers=ORIGIN)
    assert answer.history  # FastAPI's redirect to the path without the slash
    assert answer.history[0].headers["access-control-allow-origin"] in ("*", ORIGIN["Origin"])
    assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN["Origin"])
    info = answer.json()
    shown = (info["project"], info["subject"], info["experiment"], info["scan"])
    assert shown == (project, subject, experiment, scan)
    assert info["ts"] > 1_500_000_000
    # An image that is missing here is no error: the viewer uploads it instead.
    unknown = server.get("/datastore/image/info/", image=f"{project}/{subject}/{experiment}/99")
    assert (unknown.status_code, unknown.json()) == (200, {})


def test_the_preflight_request_of_a_browser_is_answered(server):
    asked = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answer = server.call("OPTIONS", "/infer/threshold", headers=asked)
    assert answer.status_code == 200
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_a_refusal_can_be_read_by_a_page_from_elsewhere(server):
    answer = infer(server, "threshold", "CLINIC/no/such/image")
    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN["Origin"])


def test_masks_and_points_come_back_on_the_voxels_of_the_series(server, tmp_path):
    image = server.image()
    gzip = infer(server, "threshold", image, result_extension=".nii.gz", result_dtype="uint8")
    mask = read_voxels(gzip.content, tmp_path)
    series = np.zeros(SHAPE, bool)
    series[1:4, 2:6, 3:7] = True
    assert (mask.astype(bool) == series).all() or (mask.astype(bool) == series[::-1]).all()
    nrrd = infer(server, "threshold", image, result_extension=".nrrd")
    assert nrrd.content[:4] == b"NRRD"
    assert (read_voxels(nrrd.content, tmp_path, ".nrrd") == mask).all()

    clicked = infer(server, "points", image, foreground=[[3, 2, 1], [6, 5, 4]], background=[])
    voxels = read_voxels(clicked.content, tmp_path)
    assert voxels.sum() == 2
    assert voxels[1, 2, 3] == voxels[4, 5, 6] == 1  # points are (x, y, z), arrays are (z, y, x)


# MONAI Label's OHIF


def series_of(server, number=0):
    return server.json("/datastore/image/info", image=server.image(number))


def test_ohif_names_images_by_their_series(server, tmp_path):
    info = series_of(server)
    uid = info["SeriesInstanceUID"]
    assert server.json("/datastore/image/info", image=uid)["scan"] == info["scan"]
    assert infer(server, "threshold", uid, result_extension=".nrrd").content[:4] == b"NRRD"
    sample = server.call("POST", "/activelearning/first", json={}, headers=ORIGIN).json()
    assert {"SeriesInstanceUID", "StudyInstanceUID", "PatientID"} <= sample.keys()

    label = tmp_path / "label.bin"
    label.write_bytes((np.arange(np.prod(SHAPE)) % 2).astype(np.uint8).tobytes())
    saved = server.save_label(uid, label, "ohif", label_info=[{"name": "organ"}])
    assert saved.json()["label"] == server.image()
    voxels = read_voxels(server.get("/datastore/label", label=uid, tag="ohif").content, tmp_path)
    assert (voxels.ravel() == np.arange(np.prod(SHAPE)) % 2).all()


def test_the_proxy_asks_xnat_with_our_login_and_keeps_the_query(server):
    first, second = series_of(server, 0), series_of(server, 1)
    studies = server.get("/proxy/dicom/qido/studies").json()
    assert len(studies) == 3
    found = server.get("/proxy/dicom/qido/studies", StudyInstanceUID=first["StudyInstanceUID"], limit=1)
    assert found.headers["content-type"] == "application/dicom+json"
    assert [study["0020000D"]["Value"] for study in found.json()] == [[first["StudyInstanceUID"]]]
    asked = [served for served in server.sandbox.requests if served.path.endswith("/CLINIC/studies")][-1]
    assert (asked.user, asked.query["limit"]) == ("owner", "1")
    nothing = server.get("/proxy/dicom/qido/studies", StudyInstanceUID="1.2.3")
    assert (nothing.status_code, nothing.content) == (204, b"")

    series = f"studies/{second['StudyInstanceUID']}/series"
    (found,) = server.json(f"/proxy/dicom/qido/{series}")
    assert found["0020000E"]["Value"] == [second["SeriesInstanceUID"]]
    for service in ("wado/", "qido/", ""):
        headers = server.json(f"/proxy/dicom/{service}{series}/{second['SeriesInstanceUID']}/metadata")
        assert len(headers) == SHAPE[0]


@pytest.mark.parametrize(
    "path",
    [
        "data/projects",
        "qido/data/projects",
        "wado/studies/..%2F..%2FCLOSED/studies",
        "wado/studies/%2e%2e/%2e%2e/CLOSED/studies",
        "qido//studies",
        "qido/studies/..",
    ],
)
def test_the_proxy_lends_our_login_to_nothing_but_dicomweb(server, path):
    before = len(server.sandbox.requests)
    answer = raw(server, "GET", f"/proxy/dicom/{path}")
    assert answer.status_code == 400
    assert "no path of DICOMweb" in answer.json()["detail"]
    assert not [served for served in list(server.sandbox.requests)[before:] if "CLOSED" in served.path]


def test_the_proxy_writes_nothing(server):
    assert server.call("POST", "/proxy/dicom/stow/studies", data=b"...").status_code == 405
    assert server.call("POST", "/proxy/dicom/wado/studies", data=b"...").status_code == 405


def test_a_dicom_seg_is_given_for_an_inference(server):
    info = series_of(server)
    answer = infer(server, "threshold", info["SeriesInstanceUID"], output="dicom_seg")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert seg.SOPClassUID == pydicom.uid.SegmentationStorage
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == info["SeriesInstanceUID"]
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["organ"]
    assert (seg.SegmentSequence[0].SegmentAlgorithmType, seg.SegmentSequence[0].SegmentAlgorithmName) == (
        "AUTOMATIC",
        "threshold",
    )
    assert seg.pixel_array.sum() == 48

    named = infer(server, "threshold", server.image(), output="dicom_seg", label_info=[{"name": "spleen", "idx": 1}])
    seg = pydicom.dcmread(io.BytesIO(named.content))
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["spleen"]


def test_a_dicom_seg_that_cannot_be_given_is_refused_with_a_reason(server):
    empty = infer(server, "threshold", server.image(), output="dicom_seg", background_only=True)
    assert (empty.status_code, "empty" in empty.json()["detail"]) == (422, True)
    unknown = infer(server, "threshold", "1.2.3", output="dicom_seg")
    assert unknown.status_code == 404
    form = {"file": ("volume.nii.gz", b"..."), "params": (None, "{}")}
    uploaded = server.call("POST", "/infer/threshold", params={"output": "dicom_seg"}, files=form)
    assert (uploaded.status_code, "give the id of an image" in uploaded.json()["detail"]) == (400, True)


# Paths that no client may reach


def raw(server, method, path, **options):
    """Send a path unchanged. The package requests would remove the dots."""
    prepared = requests.Request(method, server.url, **options).prepare()
    prepared.url = server.url + path
    with requests.Session() as session:
        return session.send(prepared, timeout=60)


def outside(server):
    project, subject, experiment, scan = server.closed.split("/")
    inside = server.image()
    return [
        server.closed,
        f"CLINIC/{subject}/{experiment}/{scan}",
        f"{inside}/../../../../{server.closed}",
        f"CLINIC/../{project}/{subject}",
        f"CLINIC%2F..%2F{project}/{subject}/{experiment}/{scan}",
        f"CLINIC/{subject}/..%2F..%2F{project}%2Fexperiments%2F{experiment}/{scan}",
        f"../projects/{project}/{scan}",
        "/etc/passwd",
        "../../../../etc/passwd",
        str(server.app / "main.py"),
        "..",
        "CLINIC/../../..",
        "a\0b/c/d/e",
        "x" * 5000,
        "",
    ]


@pytest.mark.parametrize("number", range(15))
def test_an_image_id_leads_to_nothing_outside_of_the_configured_projects(server, tmp_path, number):
    image = outside(server)[number]
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"no label at all")
    before = len(server.sandbox.requests)
    calls = {
        "image": server.get("/datastore/image", image=image),
        "label": server.get("/datastore/label", label=image, tag="final"),
        "infer": infer(server, "threshold", image) if image else None,
        "seg": infer(server, "threshold", image, output="dicom_seg"),
        "wsi": server.call("POST", "/infer/wsi/threshold", params={"image": image}, json={}) if image else None,
        "info": server.call("PUT", "/datastore/image/info", params={"image": image}, data={"info": '{"a": 1}'}),
        "label info": server.call(
            "PUT", "/datastore/label/info", params={"label": image, "tag": "final"}, data={"info": '{"a": 1}'}
        ),
        "save": server.save_label(image, label),
        "remove": server.call("DELETE", "/datastore/image", params={"id": image}),
    }
    statuses = {name: answer.status_code for name, answer in calls.items() if answer is not None}
    assert set(statuses.values()) <= {400, 404}, statuses
    assert all(len(answer.json()["detail"]) > 10 for answer in calls.values() if answer is not None)
    assert server.get("/datastore/image/info", image=image).json() == {}
    assert server.call("DELETE", "/datastore/label", params={"id": image, "tag": "final"}).status_code in (200, 404)
    experiment = server.closed.split("/")[2]
    served = [request.path for request in list(server.sandbox.requests)[before:]]
    assert not [path for path in served if "CLOSED" in path or experiment in path or ".." in path]


def test_a_path_among_the_parameters_of_an_inference_is_no_image_either(server):
    secret = str(server.app / "main.py")
    form = {"params": (None, json.dumps({"image": secret}))}
    answer = server.call("POST", "/infer/threshold", params={"image": server.image()}, files=form)
    assert answer.status_code == 404
    batch = server.call(
        "POST", "/batch/infer/threshold", params={"run_sync": "true"}, json={"images": [secret], "max_workers": 1}
    )
    assert batch.status_code == 404


# Failures are a status and a sentence


def test_an_unknown_object_is_404_with_a_sentence(server):
    image = server.image()
    calls = {
        "no such model": infer(server, "nothing", image),
        "no such strategy": server.call("POST", "/activelearning/nothing", json={}),
        "no such label": server.call(
            "PUT", "/datastore/label/info", params={"label": image, "tag": "nothing"}, data={"info": "{}"}
        ),
        "no such label file": server.get("/datastore/label", label=image, tag="nothing"),
        "no such scoring": server.call("POST", "/scoring/nothing", params={"run_sync": "true"}),
    }
    for name, answer in calls.items():
        assert answer.status_code == 404, (name, answer.text)
        assert len(answer.json()["detail"]) > 10
    assert "no label with tag 'nothing'" in calls["no such label"].json()["detail"]


def test_a_request_that_makes_no_sense_is_400_or_422_with_a_sentence(server, tmp_path):
    image = server.image()
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"no label at all")
    calls = {
        "no label": server.save_label(image, label, label_info=[]),
        "no JSON": server.call("PUT", "/datastore/image/info", params={"image": image}, data={"info": "{"}),
        "no id": server.call("PUT", "/datastore/image/info", data={"info": "{}"}),
    }
    for name, answer in calls.items():
        assert answer.status_code in (400, 422), (name, answer.text)
        assert answer.json()["detail"]


def test_while_xnat_fails_the_client_gets_an_error_and_the_server_goes_on(server, tmp_path):
    image = server.image(2)
    server.sandbox.faults.add(r"/scans/.*/(files|resources)", status=503, times=500)
    server.sandbox.faults.add(r"/data/", method="PUT", status=503, times=500)
    try:
        unread = server.get("/datastore/image", image=image)
        assert unread.status_code in (502, 503, 504), unread.text
        assert "503" in unread.json()["detail"]
        assert server.get("/info/").status_code == 200
        label = tmp_path / "label.json"
        label.write_text("{}")
        unsent = server.save_label(image, label, "boxes")
        assert unsent.status_code == 503
        assert "It is safe in" in unsent.json()["detail"]
    finally:
        server.sandbox.faults.clear()
    assert server.get("/datastore/image", image=image).status_code == 200


def test_a_user_without_the_right_gets_403_with_a_sentence(server):
    assert server.call("DELETE", "/datastore/image", params={"id": server.image()}).status_code == 403
