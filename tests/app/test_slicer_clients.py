"""3D Slicer's MONAI Label module, its Reviewer, and MONAI Label's Python client: their calls, in their order."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from clinic import SHAPE, clinic, drawn_on, read_voxels

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
    from monailabel.client.client import MONAILabelClient, MONAILabelClientException

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # The Python client leaves its connections to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ORGAN = [{"name": "organ", "idx": 1}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose account is a member of the project, as is usual. A member may write, but not delete."""
    with clinic(tmp_path_factory.mktemp("slicer"), series=6) as served:
        yield served


@pytest.fixture
def client(server, tmp_path):
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="reader-1")


# 3D Slicer's module


def test_slicer_connects_takes_a_sample_segments_corrects_and_submits(server, tmp_path):
    assert server.get("/auth/").status_code in (200, 404)
    info = server.json("/info/")
    assert info["models"]["threshold"]["labels"] == {"organ": 1}
    assert info["datastore"]["total"] >= 6

    sample = server.call("POST", "/activelearning/first", json={"client_id": "user-xyz"}).json()
    assert sample["id"] in server.images
    assert "/" not in sample["name"]
    assert sample["name"].endswith(".nii")
    assert sample["PatientID"]
    assert sample["checksum"].startswith("SHA256:")
    assert server.objects[sample["id"]]["image"]["info"]["strategy"]["first"]["client_id"] == "user-xyz"

    image = server.get("/datastore/image", image=sample["id"])
    assert image.headers["content-disposition"] == f'attachment; filename="{sample["name"]}"'
    assert sample["checksum"] == f"SHA256:{hashlib.sha256(image.content).hexdigest()}"
    assert server.call("HEAD", "/datastore/image", params={"image": sample["id"]}).status_code == 200
    assert read_voxels(image.content, tmp_path).shape == SHAPE

    words = {"params": (None, '{"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}')}
    answer = server.call("POST", "/infer/threshold", params={"image": sample["id"]}, files=words)
    assert answer.status_code == 200
    assert b'"label_names"' in answer.content

    original = server.get("/datastore/label", label=sample["id"], tag="original")
    assert original.status_code == 404  # "Original label not found" in Slicer: nothing was saved yet

    label = drawn_on(image.content, tmp_path)
    saved = server.save_label(sample["id"], label, label_info=ORGAN, model="threshold", client_id="user-xyz")
    assert saved.json() == {"image": sample["id"], "label": sample["id"]}
    assert server.json("/info/")["datastore"]["completed"] == info["datastore"]["completed"] + 1
    final = server.get("/datastore/label", label=sample["id"], tag="final")
    assert (read_voxels(final.content, tmp_path) == read_voxels(label.read_bytes(), tmp_path)).all()
    assert server.call("POST", "/activelearning/first", json={}).json()["id"] != sample["id"]


def test_slicer_starts_a_training_looks_at_it_and_stops_another(server, tmp_path):
    image = server.image(1)
    label = drawn_on(server.get("/datastore/image", image=image).content, tmp_path)
    server.save_label(image, label, label_info=ORGAN).raise_for_status()
    assert server.get("/train/", check_if_running="true").status_code == 404
    assert server.call("POST", "/train/threshold", json={"max_epochs": 1}).ok
    trained = server.finished("train")
    assert trained["status"] == "DONE", trained["details"]
    assert any("cases" in line for line in trained["details"])

    assert server.call("POST", "/train/threshold", json={"seconds": 600}).ok
    until = time.monotonic() + 60
    while server.get("/train/", check_if_running="true").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.2)
    again = server.call("POST", "/train/threshold", json={})
    assert again.status_code == 429
    assert "Already Running" in again.json()["detail"]
    assert server.call("DELETE", "/train/").json()["status"] == "STOPPED"


def test_slicer_runs_a_batch_and_scores_it_and_reads_the_log(server, tmp_path):
    image = server.image(2)
    label = drawn_on(server.get("/datastore/image", image=image).content, tmp_path)
    server.save_label(image, label, label_info=ORGAN).raise_for_status()
    assert server.call("POST", "/batch/infer/threshold", params={"images": "all"}, json={"save_label": True}).ok
    batch = server.finished("batch/infer")
    assert batch["status"] == "DONE", batch["details"]
    until = time.monotonic() + 60
    while not all("original" in about["labels"] for about in server.objects.values()):
        assert time.monotonic() < until, "the server does not show what another process has saved"
        time.sleep(0.5)
    # Slicer reads the names from here. If they are a mapping, it uses the keys.
    info = server.objects[image]["labels"]["original"]["info"]
    assert list(info["params"]["label_names"].keys()) == ["organ"]

    assert server.call("POST", "/scoring/dice", json={}).ok
    assert server.finished("scoring")["status"] == "DONE"
    assert server.call("POST", "/scoring/sum", params={"run_sync": "true"}).ok
    until = time.monotonic() + 60
    while "dice" not in server.objects[image]["image"]["info"]:
        assert time.monotonic() < until, "the server does not show the scores of another process"
        time.sleep(0.5)
    assert server.get("/logs/", text="true").status_code == 200


# Slicer's MONAILabelReviewer


def reviewed(server, image, tag, status, comment):
    meta = {"status": status, "level": "hard", "approvedBy": "Dr. B", "comment": comment, "editTime": 1}
    info = {**server.objects[image]["labels"][tag]["info"], "segmentationMeta": meta}
    query, form = {"label": image, "tag": tag}, {"params": json.dumps(info)}
    return server.call("PUT", "/datastore/updatelabelinfo", params=query, data=form)


def test_the_reviewer_approves_a_label_corrects_it_as_a_version_and_removes_that(server, tmp_path):
    image = server.image(3)
    assert requests.get(server.url, timeout=60).status_code == 200
    original = server.get("/datastore/image", image=image).content
    server.save_label(image, drawn_on(original, tmp_path), label_info=ORGAN, client_id="reader-1").raise_for_status()

    leaf = server.objects[image]["labels"]["final"]
    assert leaf["info"]["client_id"] == "reader-1"
    assert "/" not in leaf["info"]["name"]
    assert server.json("/datastore/image/info", image=image)["name"] == server.objects[image]["image"]["info"]["name"]
    assert reviewed(server, image, "final", "flagged", "the border is wrong").status_code == 200
    meta = server.objects[image]["labels"]["final"]["info"]["segmentationMeta"]
    assert (meta["status"], meta["comment"]) == ("flagged", "the border is wrong")

    # Slicer sends the id as part of the file's name, and does not encode it in the address.
    corrected = drawn_on(original, tmp_path, seed=1, suffix=".nrrd")
    sent = server.save_label(
        image, corrected, "version_1", name=f"{image}.nrrd", segmentationMeta={"status": "approved"}
    )
    assert sent.status_code == 200
    assert reviewed(server, image, "final", "approved", "see version_1").status_code == 200
    version = server.get("/datastore/label", label=image, tag="version_1")
    expected = read_voxels(corrected.read_bytes(), tmp_path, ".nrrd")
    assert (read_voxels(version.content, tmp_path) == expected).all()
    assert server.objects[image]["labels"]["version_1"]["info"]["segmentationMeta"]["status"] == "approved"

    removed = requests.delete(f"{server.url}/datastore/label?id={image}&tag=version_1", timeout=60)
    assert removed.status_code == 200, removed.text
    assert set(server.objects[image]["labels"]) - {"original"} == {"final"}
    assert server.get("/datastore/label", label=image, tag="version_1").status_code == 404
    assert "version_1" not in server.json("/info/")["datastore"]["label_tags"]


# MONAI Label's Python client


def test_the_python_client_reads_sessions_and_samples(server, client, tmp_path):
    assert client.get_server_url() == server.url
    client.set_server_url(server.url + "/")
    assert client.auth_enabled() is False
    assert client.info()["name"] == "Small"
    sample = client.next_sample("random", {"client_id": "?"})
    assert server.objects[sample["id"]]["image"]["info"]["strategy"]["random"]["client_id"] == "reader-1"

    volume = tmp_path / "volume.nii.gz"
    volume.write_bytes(server.get("/datastore/image", image=server.image()).content)
    session = client.create_session(str(volume))
    assert client.get_session(session["session_id"])["image"] == session["session_info"]["image"]
    file, params = client.infer("threshold", "", {}, session_id=session["session_id"])
    assert read_voxels(Path(file).read_bytes(), tmp_path).sum() == 48
    assert params["label_names"] == {"organ": 1}
    assert client.remove_session(session["session_id"])
    with pytest.raises(MONAILabelClientException):
        client.get_session(session["session_id"])


def test_the_python_client_infers_saves_and_downloads(server, client, tmp_path):
    image = server.image()
    file, params = client.infer("threshold", image, {"result_extension": ".nii.gz"})
    assert params["size"] == list(SHAPE[::-1])
    assert client.save_label(image, file, "from the client", {"label_info": ORGAN})["label"] == image
    assert client.datastore()["objects"][image]["labels"]["from the client"]["info"]["client_id"] == "reader-1"
    voxels = read_voxels(Path(client.download_label(image, "from the client")).read_bytes(), tmp_path)
    assert (voxels == read_voxels(Path(file).read_bytes(), tmp_path)).all()
    assert json.loads(client.wsi_infer("threshold", image, output="json")[1])["label_names"] == {"organ": 1}

    volume = tmp_path / "volume.nii.gz"
    volume.write_bytes(server.get("/datastore/image", image=image).content)
    file, _ = client.infer("threshold", "", {}, file=str(volume))
    assert read_voxels(Path(file).read_bytes(), tmp_path).sum() == 48
    with pytest.raises(MONAILabelClientException) as caught:
        client.download_label(image, "no such tag")
    assert caught.value.status_code == 404


def test_the_python_client_uploads_an_image(server, client, tmp_path):
    volume = tmp_path / "mine.nii"
    volume.write_bytes(server.get("/datastore/image", image=server.image()).content)
    uploaded = client.upload_image(str(volume), image_id="volume of the client")["image"]
    assert uploaded.startswith("CLINIC/")
    assert server.get("/datastore/image", image="volume of the client").content == volume.read_bytes()


def test_the_python_client_trains(server, client):
    assert client.train_status(check_if_running=True) is False
    assert client.train_start("threshold", {"seconds": 600})["status"] == "SUBMITTED"
    until = time.monotonic() + 60
    while not client.train_status(check_if_running=True):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert client.train_status()["status"] == "RUNNING"
    assert client.train_stop()["status"] == "STOPPED"
