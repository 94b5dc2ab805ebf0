"""The requests of MONAI Label's own endpoint tests: those that pass on LocalDatastore also pass on this datastore.

They follow tests/unit/endpoints of its repository. These are not part of the package, and name files of a data set of
their own. The tests of its DICOMweb datastore mock that datastore, and those of models need weights.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
import SimpleITK

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from clinic import clinic, drawn_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoints")
    with clinic(folder, login="owner", xnat_allow_delete="true") as one:
        for number in (0, 1):
            image = one.image(number)
            label = drawn_on(one.get("/datastore/image", image=image).content, folder, number)
            one.save_label(image, label, label_info=[{"name": "organ", "idx": 1}]).raise_for_status()
        yield one


@pytest.mark.parametrize("strategy", ["random", "first"])
def test_a_strategy_gives_id_and_name(server, strategy):
    sample = server.call("POST", f"/activelearning/{strategy}").json()
    assert sample["id"] == server.image(2)
    assert sample["name"]
    assert Path(sample["path"]).is_file()


def test_the_counts_are_shown(server):
    counts = server.json("/datastore/")
    assert (counts["total"], counts["completed"], counts["label_tags"]["final"]) == (3, 2, 2)


def test_an_image_is_added_labelled_and_removed(server, tmp_path):
    content = server.get("/datastore/image", image=server.image()).content
    volume = SimpleITK.GetArrayFromImage(_read(content, tmp_path)) + 1
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), str(tmp_path / "added_99.nii.gz"))
    content = (tmp_path / "added_99.nii.gz").read_bytes()
    added = server.call("PUT", "/datastore/", files={"file": ("added_99.nii.gz", content)})
    assert added.status_code == 200, added.text
    image = added.json()["image"]
    assert image in server.objects

    saved = server.save_label("added_99", drawn_on(content, tmp_path), "test")
    assert saved.status_code == 200, saved.text
    assert server.json("/datastore/")["label_tags"]["test"] == 1
    removed = server.call("DELETE", "/datastore/label", params={"id": "added_99", "tag": "test"})
    assert removed.status_code == 200
    assert "test" not in server.json("/datastore/")["label_tags"]

    total = server.json("/datastore/")["total"]
    assert server.call("DELETE", "/datastore/", params={"id": "added_99"}).status_code == 200
    assert server.json("/datastore/")["total"] == total - 1
    assert image not in server.objects


def _read(content, folder):
    (folder / "read.nii.gz").write_bytes(content)
    return SimpleITK.ReadImage(str(folder / "read.nii.gz"))


def test_image_and_label_are_downloaded_by_the_id_of_the_image(server):
    assert server.get("/datastore/image", image=server.image()).status_code == 200
    assert server.get("/datastore/label", label=server.image(), tag="final").status_code == 200
    assert server.call("HEAD", "/datastore/image", params={"image": server.image()}).status_code == 200
    assert server.call("HEAD", "/datastore/label", params={"image": server.image(), "tag": "final"}).status_code == 200
    assert server.get("/datastore/image", image="nothing").status_code == 404
    assert server.get("/datastore/label", label="nothing", tag="final").status_code == 404


def test_infos_have_a_name_and_a_time_and_are_updated(server):
    image = server.image()
    info = server.json("/datastore/image/info", image=image)
    assert info["name"].endswith((".nii", ".nii.gz"))
    assert isinstance(info["ts"], int)
    label = server.json("/datastore/label/info", label=image, tag="final")
    assert label["name"].endswith(".nii.gz")
    assert isinstance(label["ts"], int)
    assert label["label_info"] == [{"name": "organ", "idx": 1}]
    changed = server.call("PUT", "/datastore/image/info", params={"image": image}, data={"info": '{"a": {"b": 1}}'})
    assert changed.status_code == 200
    after = server.json("/datastore/image/info", image=image)
    assert (after["a"], after["name"], after["user"]) == ({"b": 1}, info["name"], "admin")
    query = {"label": image, "tag": "final"}
    assert server.call("PUT", "/datastore/label/info", params=query).status_code == 200
    assert server.call("PUT", "/datastore/label/info", params=query, data={"info": '{"c": 2}'}).status_code == 200
    assert server.json("/datastore/label/info", **query)["c"] == 2
    assert server.json("/datastore/image/info", image="nothing") == {}
    assert server.json("/datastore/label/info", label="nothing", tag="final") == {}


def test_the_data_set_is_packed(server):
    answer = server.get("/datastore/dataset", limit_cases=1)
    assert answer.status_code == 200
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert {name.split("/")[0] for name in names} == {"image", "label", "manifest.json", "metadata.json"}
    assert len(names) == 4
    assert len(server.json("/datastore/", output="train")) == 2


def test_a_model_runs_on_an_image(server):
    for params in ({}, {"foreground": [[1, 2, 3]], "background": []}):
        answer = server.call(
            "POST", "/infer/points", params={"image": server.image()}, data={"params": json.dumps(params)}
        )
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("images", "workers"), [("labeled", 1), ("all", 2)])
def test_a_batch_inference_runs_in_the_server(server, images, workers):
    query = {"images": images, "run_sync": "true"}
    words = {"max_workers": workers, "multi_gpu": False, "device": "cpu"}
    answer = server.call("POST", "/batch/infer/threshold", params=query, json=words)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()) == {"labeled": 2, "all": 3}[images]


def test_scores_and_a_training_are_made_in_the_server(server):
    query = {"run_sync": "true"}
    words = {"max_workers": 1, "multi_gpu": False, "device": "cpu", "save_label": True}
    batch = server.call("POST", "/batch/infer/threshold", params={**query, "images": "all"}, json=words)
    assert batch.status_code == 200, batch.text
    scores = server.call("POST", "/scoring/dice", params=query)
    assert scores.status_code == 200, scores.text
    assert 0 < server.json("/datastore/image/info", image=server.image())["dice"] < 1
    assert server.call("POST", "/train/", params=query, json={"model": "threshold"}).status_code == 200
    for task in ("train", "scoring", "batch/infer"):
        assert server.get(f"/{task}").status_code in (200, 404)
        assert server.call("DELETE", f"/{task}").status_code == 200


def test_the_app_is_described_and_its_log_is_shown(server):
    info = server.json("/info/")
    assert info["version"]
    assert info["name"] == "Small"
    assert info["labels"] == ["organ"]
    assert "INFO" in server.get("/logs/", text="true", lines=50).text
    assert server.get("/model/info/threshold").status_code in (404, 500)  # it has no file


def test_sessions_are_kept_and_removed(server, tmp_path):
    content = server.get("/datastore/image", image=server.image()).content
    assert server.get("/session/xyz").status_code == 404
    for names in (["one.nii.gz"], ["one.nii.gz", "two.nii.gz"]):
        files = [("files", (name, content)) for name in names]
        session = server.call("PUT", "/session/", params={"expiry": 600}, files=files).json()["session_id"]
        assert server.get(f"/session/{session}", update_ts="true").status_code == 200
        assert server.call("DELETE", f"/session/{session}").status_code == 200
        assert server.get(f"/session/{session}").status_code == 404
