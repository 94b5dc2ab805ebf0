"""Infos of images: merged, kept in XNAT, seen by other servers, and read with few requests."""

from __future__ import annotations

import numpy as np
import pytest

from monailabel_xnat.errors import UnknownImageError


@pytest.fixture
def open_datastore(xnat_sandbox, demo_dicom, open_xnat_datastore):
    for case in demo_dicom.cases[:3]:
        xnat_sandbox.import_dicom(case.dicom, "DEMO")
    xnat_sandbox.requests.clear()
    return lambda **settings: open_xnat_datastore(project="DEMO", series_description="!*localizer*", **settings)


def requests_for_infos(sandbox):
    return [served for served in sandbox.requests if "MONAILABEL_info" in served.path]


def test_info_survives_a_restart(open_datastore):
    first = open_datastore()
    image = first.list_images()[0]
    first.update_image_info(image, {"strategy": {"random": {"ts": 7, "client_id": "ann"}}})
    first.close()
    assert open_datastore().get_image_info(image)["strategy"] == {"random": {"ts": 7, "client_id": "ann"}}


def test_two_servers_on_one_project_keep_each_other_s_keys(open_datastore):
    server, scoring = open_datastore(), open_datastore()
    image = server.list_images()[0]
    server.update_image_info(image, {"strategy": {"random": {"ts": 1}}})
    scoring.update_image_info(image, {"epistemic_entropy": 0.5})
    server.close()
    scoring.close()
    info = open_datastore().get_image_info(image)
    assert info["strategy"] == {"random": {"ts": 1}}
    assert info["epistemic_entropy"] == 0.5


def test_what_a_server_on_another_machine_overwrote_is_written_again(open_datastore, tmp_path):
    server, other = open_datastore(), open_datastore(cache_path=tmp_path / "another machine")
    image = server.list_images()[0]
    scan = other._catalog.scan(image)
    server.update_image_info(image, {"strategy": {"random": {"ts": 1}}})
    server._infos.flush()
    other._infos._store(scan, {"dice": 0.5}, 0)  # as if it had read before the server wrote
    server._infos._confirm()
    server.close()
    info = open_datastore().get_image_info(image)
    assert (info["strategy"], info["dice"]) == ({"random": {"ts": 1}}, 0.5)


def test_a_change_by_another_server_is_seen_after_a_renewal(open_datastore):
    server, other = open_datastore(), open_datastore()
    image = server.list_images()[0]
    for number in range(3):
        other.update_image_info(image, {"dice": number / 10})
        other._infos.flush()
        server.refresh()
        assert server.get_image_info(image)["dice"] == number / 10


def test_infos_are_read_in_bulk_and_only_once(xnat_sandbox, open_datastore, tmp_path):
    writer = open_datastore()
    images = writer.list_images()
    for image in images:
        writer.update_image_info(image, {"dice": 0.25})
    writer.close()
    reader = open_datastore(cache_path=tmp_path / "another machine")
    xnat_sandbox.requests.clear()
    for _ in range(3):
        assert [reader.get_image_info(image)["dice"] for image in images] == [0.25] * 3
    asked = [served.path for served in requests_for_infos(xnat_sandbox)]
    assert len([path for path in asked if path.endswith("/image.json")]) == len(images)
    assert len([path for path in asked if path.endswith("/files")]) == len(images)
    assert len(asked) == 2 * len(images)


def test_one_value_of_many_images_is_what_each_info_holds(open_datastore):
    writer, reader = open_datastore(), open_datastore()
    first, second, _ = images = reader.list_images()
    writer.update_image_info(first, {"strategy": {"s": {"ts": 7}}, "dice": 0.5})
    writer._infos.flush()
    reader.refresh()
    reader.update_image_info(second, {"dice": 0.25})
    assert reader.info_values(images, "dice") == {first: 0.5, second: 0.25}
    assert reader.info_values(images, "strategy", "s", "ts") == {first: 7}
    assert reader.info_values([second, "no/such/image/1"], "dice") == {second: 0.25}
    reader.info_values(images, "strategy")[first].clear()
    assert reader.get_image_info(first)["strategy"] == {"s": {"ts": 7}}


def test_many_changes_to_one_image_are_gathered(xnat_sandbox, open_datastore):
    datastore = open_datastore()
    image = datastore.list_images()[0]
    xnat_sandbox.requests.clear()
    for number in range(50):
        datastore.update_image_info(image, {"count": number})
    datastore.close()
    writes = [
        served for served in requests_for_infos(xnat_sandbox) if served.method == "PUT" and "/files/" in served.path
    ]
    assert len(writes) <= 3


def test_numpy_scores_are_kept_as_plain_numbers(open_datastore):
    datastore = open_datastore()
    image = datastore.list_images()[0]
    datastore.update_image_info(image, {"dice": np.float64(0.5), "n": np.int32(3), "bad": float("nan")})
    datastore.close()
    info = open_datastore().get_image_info(image)
    assert (info["dice"], info["n"], info["bad"]) == (0.5, 3, None)
    assert type(info["dice"]) is float


def test_a_read_only_datastore_remembers_without_writing(xnat_sandbox, open_datastore):
    datastore = open_datastore(read_only=True)
    image = datastore.list_images()[0]
    datastore.update_image_info(image, {"dice": 0.5})
    datastore.close()
    assert datastore.get_image_info(image)["dice"] == 0.5
    assert [served.method for served in xnat_sandbox.requests if served.method != "GET"] in (
        [],
        ["PUT"],
        ["PUT", "DELETE"],
    )
    assert requests_for_infos(xnat_sandbox) == []


def test_a_user_who_may_only_read_keeps_info_in_memory(xnat_sandbox, open_datastore, caplog):
    user = "collaborator"
    datastore = open_datastore(username=user, password=xnat_sandbox.users[user])
    image = datastore.list_images()[0]
    datastore.update_image_info(image, {"dice": 0.5})
    datastore._infos.flush()
    assert datastore.get_image_info(image)["dice"] == 0.5
    assert "refused and waits" in caplog.text
    assert image not in caplog.text


def test_info_of_an_unknown_image_is_refused(open_datastore):
    with pytest.raises(UnknownImageError):
        open_datastore().update_image_info("DEMO/a/b/1", {})


def test_name_and_description_survive_a_restart(open_datastore):
    first = open_datastore()
    assert first.description() == f"DEMO on {first._settings.server}"
    first.set_name("Abdomen")
    first.set_description("CT, portal venous")
    again = open_datastore()
    assert (again.name(), again.description()) == ("Abdomen", "CT, portal venous")
