"""Small files from XNAT are believed only if they are proven right. Others are never kept and never written back."""

from __future__ import annotations

import gzip
import json
import logging
import secrets

import nibabel
import numpy as np
import pytest
import requests
from label_archive import AFFINE, SHAPE, fill
from meddler import Answer, Meddler

from monailabel_xnat.errors import ServerError, TransferError, UnknownLabelError

LABELS = "spleen=1,liver=2"


class Archive:
    """An archive with two images in one session, whose answers can be changed."""

    def __init__(self, sandbox, admin, open_datastore):
        self.sandbox, self.admin, self.open_datastore = sandbox, admin, open_datastore
        self.project = f"P{secrets.token_hex(4)}"
        fill(sandbox.url, self.project, admin)
        self.meddler = Meddler(sandbox.url)

    def open(self, **settings):
        given = {"server": self.meddler.url, "project": self.project, "roi_write": "", **settings}
        return self.open_datastore(**given)

    def files(self, image, resource):
        """Return the names of the files of a resource, and their contents."""
        place = self.place(image, resource)
        rows = self.admin.get(f"{place}/files?format=json").json()["ResultSet"]["Result"]
        return {row["Name"]: self.admin.get(f"{place}/files/{row['Name']}").content for row in rows}

    def place(self, image, resource):
        _, subject, experiment, scan = image.split("/")
        session = f"{self.sandbox.url}/data/projects/{self.project}/subjects/{subject}/experiments/{experiment}"
        return f"{session}/scans/{scan}/resources/{resource}"

    def delete(self, image, resource, ending):
        for name in self.files(image, resource):
            if name.endswith(ending):
                self.admin.delete(f"{self.place(image, resource)}/files/{name}").raise_for_status()

    def replace(self, image, resource, ending, content):
        for name in self.files(image, resource):
            if name.endswith(ending):
                address = f"{self.place(image, resource)}/files/{name}?overwrite=true"
                headers = {"Content-Type": "application/octet-stream"}
                self.admin.put(address, data=content, headers=headers).raise_for_status()


@pytest.fixture
def archive(xnat_sandbox, open_xnat_datastore):
    with requests.Session() as admin:
        admin.auth = (xnat_sandbox.username, xnat_sandbox.password)
        archive = Archive(xnat_sandbox, admin, open_xnat_datastore)
        yield archive
        archive.meddler.close()


@pytest.fixture
def images(archive, tmp_path):
    """Two images with labels. The liver has the value 1 in the files, and 2 in the settings."""
    datastore = archive.open(cache_path=tmp_path / "annotator")
    images = datastore.list_images()
    for value, image in enumerate(images, 1):
        info = {"label_info": [{"name": "liver", "idx": value}], "author": "ann"}
        datastore.save_label(image, label_file(tmp_path, value), "final", info)
        datastore.update_image_info(image, {"strategy": {"random": {"ts": value}}, "dice": value / 10})
    datastore.close()
    return images


def label_file(folder, value):
    array = np.zeros(SHAPE, np.uint8)
    array[1:4, 1:4, 1:4] = value
    path = folder / f"label{value}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return str(path)


def values(path):
    return set(np.unique(np.asarray(nibabel.load(path).dataobj)).tolist())


PAGE = b"<!DOCTYPE html><html><body><form action='/app/action/XDATLoginUser'>Log in</form></body></html>"


def short(answer: Answer) -> Answer:
    return answer._replace(body=answer.body[:-20])


def short_json(answer: Answer) -> Answer:
    return answer._replace(body=b'{"format_version": 1}')


def empty(answer: Answer) -> Answer:
    return answer._replace(body=b"")


def page(answer: Answer) -> Answer:
    return answer._replace(body=PAGE, content_type="text/html")


def page_as_json(answer: Answer) -> Answer:
    return answer._replace(body=PAGE, content_type="application/json")


def some_list(answer: Answer) -> Answer:
    return answer._replace(body=b"[]")


def nothing_in_it(answer: Answer) -> Answer:
    return answer._replace(body=b"{}")


def null(answer: Answer) -> Answer:
    return answer._replace(body=b"null")


def written_anew(answer: Answer) -> Answer:
    return answer._replace(body=json.dumps(json.loads(answer.body)).encode())


def zipped(answer: Answer) -> Answer:
    return answer._replace(body=gzip.compress(answer.body))


def zipped_wrongly(answer: Answer) -> Answer:
    return answer._replace(body=gzip.compress(answer.body)[:-12], encoding="gzip")


def missing(answer: Answer) -> Answer:
    return answer._replace(status=404, body=b"")


def failed(answer: Answer) -> Answer:
    return answer._replace(status=500, body=b"")


def no_digest(answer: Answer) -> Answer:
    return answer._replace(body=answer.body.replace(b'"digest":"', b'"digest":"","was":"'))


OTHERS = [
    short,
    short_json,
    empty,
    page,
    page_as_json,
    some_list,
    nothing_in_it,
    null,
    written_anew,
    zipped,
    zipped_wrongly,
    missing,
    failed,
]
DESCRIPTION = r"/scans/1/.*MONAILABEL_final/files/.*Z-[0-9a-f]+\.json"
INFO = r"/scans/1/.*MONAILABEL_info/files/image\.json"


def of(images, scan):
    (image,) = (image for image in images if image.endswith(f"/{scan}"))
    return image


def test_a_liver_never_gets_the_value_of_the_spleen(archive, images, caplog):
    datastore = archive.open(labels=LABELS)
    for how in OTHERS:
        archive.meddler.change(DESCRIPTION, how)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            (pair,) = datastore.datalist()
        assert values(pair["label"]) == {0, 2}
        (left_out,) = datastore.status()["left_out"]
        assert left_out == of(images, 1)
        assert any("1 of 2 labelled images are left out" in line for line in warnings(caplog))
        assert not any(left_out in line for line in warnings(caplog))
        assert left_out in caplog.text
        archive.meddler.stop()
    assert [values(pair["label"]) for pair in datastore.datalist()] == [{0, 2}] * 2
    assert "left_out" not in datastore.status()
    assert [values(pair["label"]) for pair in archive.open(labels=LABELS).datalist()] == [{0, 2}] * 2


def error_of(how):
    return ServerError if how is failed else TransferError


def test_changing_an_info_writes_no_emptiness_over_a_description(archive, images):
    image = of(images, 1)
    before = archive.files(image, "MONAILABEL_final")
    datastore = archive.open()
    for how in OTHERS:
        archive.meddler.change(DESCRIPTION, how)
        with pytest.raises(error_of(how)):
            datastore.update_label_info(image, "final", {"score": 3})
        with pytest.raises(error_of(how)):
            datastore.get_label_info(image, "final")
        assert archive.files(image, "MONAILABEL_final") == before
        archive.meddler.stop()
    datastore.update_label_info(image, "final", {"score": 3})
    (name,) = (name for name in before if name.endswith(".json"))
    old, new = json.loads(before[name]), json.loads(archive.files(image, "MONAILABEL_final")[name])
    assert new == {**old, "info": {**old["info"], "score": 3}}


def test_scores_and_strategy_survive_an_answer_that_is_not_the_file(archive, images, tmp_path):
    image = of(images, 1)
    before = archive.files(image, "MONAILABEL_info")["image.json"]
    for number, how in enumerate(OTHERS):
        archive.meddler.change(INFO, how)
        datastore = archive.open(cache_path=tmp_path / str(number))
        assert datastore.get_image_info(of(images, 2))["dice"] == 0.2
        assert "dice" not in datastore.get_image_info(image)
        assert datastore.status()["infos_unread"] == 1
        datastore.update_image_info(image, {"entropy": 0.5})
        datastore._infos.flush()
        assert archive.files(image, "MONAILABEL_info")["image.json"] == before
        assert datastore.get_image_info(image)["entropy"] == 0.5
        archive.meddler.stop()
    datastore._infos.flush()
    stored = json.loads(archive.files(image, "MONAILABEL_info")["image.json"])
    assert stored == {**json.loads(before), "entropy": 0.5}
    assert datastore.get_image_info(image)["strategy"] == {"random": {"ts": 1}}
    assert "infos_unread" not in datastore.status()


def test_infos_that_cannot_be_read_are_counted_in_a_warning_and_named_below(archive, images, caplog):
    image = of(images, 1)
    archive.meddler.change(INFO, short)
    with caplog.at_level(logging.INFO):
        archive.open().get_image_info(image)
    assert any("1 image infos could not be read" in line for line in warnings(caplog))
    assert not any(image in line for line in warnings(caplog))
    assert image in caplog.text


def test_what_was_known_of_an_image_stays_while_its_change_cannot_be_read(archive, images, tmp_path):
    image = of(images, 1)
    datastore = archive.open()
    assert datastore.get_image_info(image)["dice"] == 0.1
    other = archive.open(cache_path=tmp_path / "another machine")
    other.update_image_info(image, {"dice": 0.7})
    other.close()
    archive.meddler.change(INFO, short)
    datastore.refresh()
    assert datastore.get_image_info(image)["dice"] == 0.1
    again = archive.open()
    assert again.get_image_info(image)["dice"] == 0.1
    archive.meddler.stop()
    assert archive.open().get_image_info(image)["dice"] == 0.7


def test_the_name_of_a_datastore_survives_an_answer_that_is_not_the_file(archive):
    archive.open().set_name("Abdomen")
    datastore = archive.open()
    for how in OTHERS:
        archive.meddler.change(r"MONAILABEL_datastore/files/datastore\.json", how)
        with pytest.raises(error_of(how)):
            datastore.name()
        with pytest.raises(error_of(how)):
            datastore.set_description("CT")
        archive.meddler.stop()
    datastore.set_description("CT")
    again = archive.open()
    assert (again.name(), again.description()) == ("Abdomen", "CT")


def test_a_datastore_without_a_name_is_called_by_its_address(archive):
    assert archive.meddler.url in archive.open().name()


def no_rows(answer: Answer) -> Answer:
    return answer._replace(body=b'{"ResultSet":{"Result":[],"title":"Files"}}')


def first_row(answer: Answer) -> Answer:
    rows = json.loads(answer.body)["ResultSet"]["Result"]
    return answer._replace(body=json.dumps({"ResultSet": {"Result": rows[:1]}}).encode())


def fewer_rows_than_counted(answer: Answer) -> Answer:
    listing = json.loads(answer.body)
    listing["ResultSet"]["Result"].pop()
    return answer._replace(body=json.dumps(listing).encode())


def other_rows(answer: Answer) -> Answer:
    return answer._replace(body=b'{"ResultSet":{"Result":[{"ID":"X"},{"ID":"Y"}]}}')


def no_list(answer: Answer) -> Answer:
    return answer._replace(body=b'{"ResultSet":{"Result":{}}}')


LISTINGS = [no_rows, first_row, fewer_rows_than_counted, other_rows, no_list, nothing_in_it, some_list, page, short]


def test_a_short_list_of_files_hides_no_label_and_no_description(archive, images, tmp_path):
    image = of(images, 1)
    before = archive.files(image, "MONAILABEL_final")
    for number, how in enumerate(LISTINGS):
        archive.meddler.change(r"/scans/1/.*MONAILABEL_final/files$", how)
        datastore = archive.open(labels=LABELS, cache_path=tmp_path / str(number))
        assert len(datastore.datalist()) == 1
        assert list(datastore.status()["left_out"]) == [image]
        with pytest.raises(TransferError):
            datastore.update_label_info(image, "final", {"score": 3})
        with pytest.raises(TransferError):
            datastore.remove_label(image, "final")
        assert archive.files(image, "MONAILABEL_final") == before
        archive.meddler.stop()
        assert len(datastore.datalist()) == 2


def test_a_short_list_of_files_costs_no_score_and_no_name(archive, images):
    image = of(images, 1)
    archive.open().set_name("Abdomen")
    before = archive.files(image, "MONAILABEL_info")["image.json"]
    datastore = archive.open()
    for how in LISTINGS:
        if how is first_row:  # there is only one file
            continue
        archive.meddler.change(r"(/scans/1/.*MONAILABEL_info|MONAILABEL_datastore)/files$", how)
        with pytest.raises(TransferError):
            datastore.name()
        with pytest.raises(TransferError):
            datastore.set_description("CT")
        datastore.update_image_info(image, {"entropy": 0.5})
        datastore._infos.flush()
        assert archive.files(image, "MONAILABEL_info")["image.json"] == before
        archive.meddler.stop()
    datastore._infos.flush()
    assert datastore.get_image_info(image)["dice"] == 0.1
    assert datastore.name() == "Abdomen"


def of_another_label(archive, images):
    (other,) = (
        content for name, content in archive.files(of(images, 2), "MONAILABEL_final").items() if name.endswith(".json")
    )
    return json.loads(other)


def own_description(archive, images):
    (own,) = (
        content for name, content in archive.files(of(images, 1), "MONAILABEL_final").items() if name.endswith(".json")
    )
    return json.loads(own)


WRONG = {
    "another label": lambda own, other: other,
    "another image": lambda own, other: {**own, "image_id": other["image_id"]},
    "another file": lambda own, other: {**own, "sha256": other["sha256"]},
    "another tag": lambda own, other: {**own, "tag": "original"},
    "only an info": lambda own, other: {"info": own["info"]},
    "nothing": lambda own, other: {},
    "a list": lambda own, other: [own],
    "segments as a mapping": lambda own, other: {**own, "segments": {"1": "liver"}},
    "a segment without value": lambda own, other: {**own, "segments": [{"name": "liver"}]},
    "a value as text": lambda own, other: {**own, "segments": [{"value": "1", "name": "liver"}]},
    "an info as list": lambda own, other: {**own, "info": []},
    "a geometry as text": lambda own, other: {**own, "geometry": "LPS"},
    "a source as text": lambda own, other: {**own, "source": "model"},
}


@pytest.mark.parametrize("is_stored", [True, False], ids=["in XNAT", "on the way, without digests"])
def test_a_description_of_another_form_or_label_is_not_believed(archive, images, is_stored):
    image = of(images, 1)
    own, other = own_description(archive, images), of_another_label(archive, images)
    datastore = archive.open(labels=LABELS)
    for number, wrong in enumerate(WRONG.values()):
        # Each file has another length, by which the listing shows a change.
        content = json.dumps(wrong(own, other)).encode() + b" " * number
        if is_stored:
            archive.replace(image, "MONAILABEL_final", ".json", content)
            datastore.refresh()
        else:
            archive.meddler.stop()
            archive.meddler.change(DESCRIPTION, padded(content))
            archive.meddler.change("/files$", no_digest)
        assert len(datastore.datalist()) == 1
        assert list(datastore.status()["left_out"]) == [image]
        with pytest.raises(TransferError):
            datastore.get_label_info(image, "final")
        with pytest.raises(TransferError):
            datastore.update_label_info(image, "final", {"score": 3})
        (version,) = datastore.label_history(image, "final")
        assert "form" in version["problem"]
        assert values(datastore.get_label_uri(image, "final")) == {0, 1}


def padded(content):
    return lambda answer: answer._replace(body=content.ljust(len(answer.body))[: max(len(answer.body), len(content))])


def test_where_xnat_lists_no_digests_the_size_and_the_form_tell(archive, images):
    archive.meddler.change("/files$", no_digest)
    datastore = archive.open(labels=LABELS)
    assert len(datastore.datalist()) == 2
    assert datastore.get_image_info(of(images, 1))["dice"] == 0.1
    archive.meddler.change(DESCRIPTION, short)
    archive.meddler.change(INFO, short)
    datastore = archive.open(labels=LABELS, cache_path=datastore._settings.cache_path / "other")
    assert len(datastore.datalist()) == 1
    assert "dice" not in datastore.get_image_info(of(images, 1))


def test_a_body_that_is_compressed_on_the_way_is_the_same_file(archive, images):
    archive.meddler.change(
        DESCRIPTION, lambda answer: answer._replace(body=gzip.compress(answer.body), encoding="gzip")
    )
    datastore = archive.open(labels=LABELS)
    assert len(datastore.datalist()) == 2
    assert datastore.get_label_info(of(images, 1), "final")["author"] == "ann"


def test_a_description_changed_by_another_server_is_read_anew(archive, images, tmp_path):
    image = of(images, 1)
    datastore = archive.open(cache_path=tmp_path / "one")
    datastore.get_label_uri(image, "final")
    archive.open(cache_path=tmp_path / "two").update_label_info(image, "final", {"score": 3})
    assert datastore.get_label_info(image, "final")["score"] == 3


def test_what_an_older_version_had_kept_wrongly_is_not_used(archive, images, tmp_path):
    image = of(images, 1)
    datastore = archive.open()
    datastore.get_label_info(image, "final")
    datastore.close()
    folder = datastore._settings.server_folder
    (file,) = folder.glob("memory-*.sqlite")
    assert file.name != "memory-1.sqlite"


def test_a_label_without_its_description_is_trained_on_with_a_note(archive, images, caplog):
    image = of(images, 1)
    archive.delete(image, "MONAILABEL_final", ".json")
    datastore = archive.open(labels=LABELS)
    with caplog.at_level(logging.INFO):
        assert len(datastore.datalist()) == 2
    assert "without its description" in datastore.status()["label_notes"][image]
    assert "left_out" not in datastore.status()
    assert any("1 images of the training set have a label with a note" in line for line in warnings(caplog))
    assert not any(image in line for line in warnings(caplog))
    (manifest,) = (datastore._settings.server_folder / "manifests").glob("*.json")
    notes = {case["image_id"]: case["label"].get("notes") for case in json.loads(manifest.read_text())["cases"]}
    assert notes[of(images, 2)] is None
    assert "without its description" in notes[image][0]
    (version,) = datastore.label_history(image, "final")
    assert "without its description" in version["problem"]
    assert datastore.get_label_info(image, "final")["name"]


def test_a_label_without_its_description_gets_one_when_its_info_is_changed_or_it_is_restored(archive, images):
    image = of(images, 1)
    archive.delete(image, "MONAILABEL_final", ".json")
    datastore = archive.open()
    datastore.update_label_info(image, "final", {"score": 3})
    again = archive.open(labels=LABELS)
    assert again.get_label_info(image, "final")["score"] == 3
    (version,) = again.label_history(image, "final")
    assert [(item["value"], item["name"]) for item in version["segments"]] == [(1, "Segment_1")]
    assert "problem" not in version
    archive.delete(image, "MONAILABEL_final", ".json")
    third = archive.open()
    third.restore_label(image, "final", version["version"])
    assert third.label_history(image, "final")[0]["restored_from"] == version["version"]
    assert third.get_label_info(image, "final")["name"]


def test_a_label_whose_description_was_destroyed_is_restored_with_a_new_one(archive, images):
    image = of(images, 1)
    archive.replace(image, "MONAILABEL_final", ".json", json.dumps({"info": {"score": 1}}).encode())
    datastore = archive.open()
    (version,) = datastore.label_history(image, "final")
    assert "restore_label" in version["problem"]
    datastore.restore_label(image, "final", version["version"])
    assert len(archive.open().datalist()) == 2
    current, earlier = datastore.label_history(image, "final")
    assert "problem" not in current
    assert "problem" in earlier


def test_a_description_without_its_label_is_no_label(archive, images):
    image, other = of(images, 1), of(images, 2)
    archive.delete(image, "MONAILABEL_final", ".nii.gz")
    datastore = archive.open()
    assert datastore.get_labeled_images() == [other]
    assert datastore.get_unlabeled_images() == [image]
    assert datastore.get_labels_by_image_id(image) == {}
    status = datastore.status()
    assert (status["completed"], status["label_tags"]) == (1, {"final": 1})
    assert datastore.get_label_uri(image, "final") == ""
    assert datastore.get_label_info(image, "final") == {}
    assert datastore.label_history(image, "final") == []
    assert datastore.json()["objects"][image]["labels"] == {}
    assert [pair["label"] for pair in datastore.datalist()] == [datastore.get_label_uri(other, "final")]
    assert "left_out" not in datastore.status()
    with pytest.raises(UnknownLabelError):
        datastore.update_label_info(image, "final", {"score": 3})
    archive.delete(other, "MONAILABEL_final", ".nii.gz")
    datastore.refresh()
    assert datastore.get_labeled_images() == []
    with pytest.raises(UnknownLabelError):
        datastore.get_dataset_archive()


def test_a_list_of_everything_counts_the_labels_that_it_cannot_describe(archive, images, caplog):
    image = of(images, 1)
    archive.meddler.change(DESCRIPTION, short)
    datastore = archive.open()
    with caplog.at_level(logging.INFO):
        objects = datastore.json()["objects"]
    assert objects[image]["labels"]["final"]["info"] == {}
    assert objects[of(images, 2)]["labels"]["final"]["info"]["author"] == "ann"
    assert any("1 labels could not be described" in line for line in warnings(caplog))
    assert not any(image in line for line in warnings(caplog))
    assert image in caplog.text


def test_a_label_of_another_program_that_ends_early_is_no_label_where_xnat_lists_no_digests(archive, images, tmp_path):
    image = of(images, 2)
    place = f"{archive.place(image, 'SEGS')}/files/seg.nii"
    array = np.ones(SHAPE, np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "seg.nii")
    headers = {"Content-Type": "application/octet-stream"}
    archive.admin.put(place, data=(tmp_path / "seg.nii").read_bytes(), headers=headers).raise_for_status()
    archive.meddler.change("/files$", no_digest)
    archive.meddler.change(r"seg\.nii$", short)
    datastore = archive.open(label_resource="other:SEGS:*.nii")
    with pytest.raises(TransferError):
        datastore.get_label_uri(image, "other")
    archive.meddler.stop()
    assert values(datastore.get_label_uri(image, "other")) == {1}


def test_incomplete_labels_are_searched_once(archive, images):
    archive.delete(of(images, 1), "MONAILABEL_final", ".nii.gz")
    archive.open().status()
    archive.sandbox.requests.clear()
    datastore = archive.open()
    for _ in range(3):
        datastore.status()
        datastore.refresh()
    assert not [served for served in archive.sandbox.requests if "MONAILABEL_final" in served.path]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
