from __future__ import annotations

import json
import stat
import time

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK
from label_archive import AFFINE, SHAPE, stored, voxels

from monailabel_xnat.client.session import quoted
from monailabel_xnat.errors import (
    LabelError,
    LabelFileError,
    LabelGeometryError,
    ReadOnlyError,
    UnknownLabelError,
)


def count_requests(opened, monkeypatch):
    sent = []
    request = requests.Session.request

    def counted(self, method, url, **options):
        sent.append((method, url))
        return request(self, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", counted)
    return sent


def test_a_saved_label_comes_back_as_it_was_here_and_elsewhere(open_labels, draw):
    mine = open_labels()
    version = mine.store.save(mine.scan, "final", draw(), {"note": "first"})
    for opened in (mine, open_labels("other")):
        assert opened.labels.tags(opened.scan) == ["final"]
        path = opened.labels.path(opened.scan, "final")
        np.testing.assert_array_equal(voxels(path), voxels(draw()))
        np.testing.assert_allclose(nibabel.load(path).affine, AFFINE)
        assert opened.labels.info(opened.scan, "final") == {"note": "first"}
    assert stored(mine) == [f"{version.name}.json", f"{version.name}.nii.gz"]
    assert mine.store.waiting() == 0


def test_what_is_written_in_xnat_is_the_documented_format(open_labels, draw):
    opened = open_labels()
    info = {"label_info": [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}], "model": "net"}
    version = opened.store.save(opened.scan, "final", draw(), info)
    path = opened.scan.path + quoted("resources", "MONAILABEL_final", "files", f"{version.name}.json")
    description = json.loads(opened.session.request("GET", path).content)
    assert description["info"] == info
    assert [segment["name"] for segment in description["segments"]] == ["spleen", "liver"]
    assert description["sha256"].startswith(version.digest)
    assert description["image_id"] == str(opened.scan.image_id)
    assert description["saved_by"] == opened.session.user
    assert description["saved_at"].endswith("+00:00")
    assert description["geometry"]["shape"] == list(SHAPE)
    assert description["format_version"] == 1


def test_saving_again_adds_a_version_and_keeps_the_first(open_labels, draw):
    opened = open_labels()
    first = opened.store.save(opened.scan, "final", draw(1), {"n": 1})
    second = opened.store.save(opened.scan, "final", draw(2), {"n": 2})
    assert [version.name for version in opened.labels.history(opened.scan, "final")] == [second.name, first.name]
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), voxels(draw(2)))
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final", first.name)), voxels(draw(1)))
    assert opened.labels.info(opened.scan, "final", first.name) == {"n": 1}


def test_saving_the_same_bytes_twice_makes_two_versions(open_labels, draw):
    opened = open_labels()
    names = {opened.store.save(opened.scan, "final", draw(), {}).name for _ in range(2)}
    assert len(names) == 2
    assert len(stored(opened)) == 4


def test_a_warm_label_costs_no_request(open_labels, draw, monkeypatch):
    opened = open_labels()
    opened.store.save(opened.scan, "final", draw(), {})
    opened.labels.info(opened.scan, "final")
    sent = count_requests(opened, monkeypatch)
    opened.labels.tags(opened.scan)
    opened.labels.path(opened.scan, "final")
    opened.labels.info(opened.scan, "final")
    assert sent == []


def test_tags_of_a_fresh_process_cost_no_request_beyond_the_listing(open_labels, draw, monkeypatch):
    opened = open_labels()
    opened.store.save(opened.scan, "review 2", draw(), {})
    other = open_labels("other")
    other.catalog.scans()
    sent = count_requests(other, monkeypatch)
    assert other.labels.tags(other.scan) == ["review 2"]
    assert sent == []


def test_tags_do_not_mix(open_labels, draw):
    opened = open_labels()
    for seed, tag in enumerate(["original", "final", "version_1", "info", "Ünïcode/.. ", "FINAL"]):
        opened.store.save(opened.scan, tag, draw(seed), {"tag": tag})
    for seed, tag in enumerate(["original", "final", "version_1", "info", "Ünïcode/.. ", "FINAL"]):
        np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, tag)), voxels(draw(seed)))
        assert opened.labels.info(opened.scan, tag) == {"tag": tag}
    other = open_labels("other")
    assert set(other.labels.tags(other.scan)) == {"original", "final", "version_1", "info", "Ünïcode/.. ", "FINAL"}


def test_another_scan_has_labels_of_its_own(open_labels, draw):
    opened = open_labels()
    second = opened.catalog.scan(f"{opened.settings.project[0]}/s1/e1/2")
    opened.store.save(opened.scan, "final", draw(), {})
    assert opened.labels.tags(second) == []


def test_earlier_versions_can_be_restored(open_labels, draw):
    opened = open_labels()
    first = opened.store.save(opened.scan, "final", draw(1), {"n": 1})
    opened.store.save(opened.scan, "final", draw(2), {"n": 2})
    restored = opened.store.restore(opened.scan, "final", first.name)
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), voxels(draw(1)))
    newest, *_ = opened.labels.history(opened.scan, "final")
    assert newest.name == restored.name
    assert newest.description["restored_from"] == first.name
    assert newest.description["info"] == {"n": 1}
    assert len(stored(opened)) == 6


def test_updating_the_info_merges_top_level_keys_and_leaves_the_rest(open_labels, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "final", draw(), {"a": {"x": 1}, "b": 2})
    before = opened.labels.description(opened.scan, "final")
    opened.store.update_info(opened.scan, "final", {"a": {"y": np.float32(2)}, "c": np.int64(3)})
    after = opened.labels.description(opened.scan, "final")
    assert after == {**before, "info": {"a": {"y": 2.0}, "b": 2, "c": 3}}
    other = open_labels("other")
    assert other.labels.info(other.scan, "final") == after["info"]
    assert len(opened.labels.history(opened.scan, "final")) == 1


def test_a_changed_info_is_seen_by_others_once_they_look_again(open_labels, draw):
    mine, other = open_labels(), open_labels("other")
    mine.store.save(mine.scan, "final", draw(), {"a": 1})
    other.catalog.renew()
    assert other.labels.info(other.scan, "final") == {"a": 1}
    mine.store.update_info(mine.scan, "final", {"a": 2})
    other.catalog.renew()
    assert other.labels.info(other.scan, "final") == {"a": 2}


def test_two_who_update_the_info_keep_each_others_keys(open_labels, draw):
    mine, other = open_labels(), open_labels("other")
    mine.store.save(mine.scan, "final", draw(), {})
    other.catalog.renew()
    other.labels.info(other.scan, "final")
    mine.store.update_info(mine.scan, "final", {"mine": 1})
    other.store.update_info(other.scan, "final", {"other": 2})
    assert other.labels.info(other.scan, "final") == {"mine": 1, "other": 2}


def test_infos_given_out_are_copies(open_labels, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "final", draw(), {"a": [1]})
    opened.labels.info(opened.scan, "final")["a"].append(2)
    assert opened.labels.info(opened.scan, "final") == {"a": [1]}


def test_a_result_that_is_no_segmentation_is_stored_as_it_is(open_labels, tmp_path):
    opened = open_labels()
    (tmp_path / "boxes.json").write_text('{"boxes": [1, 2]}\n')
    version = opened.store.save(opened.scan, "original", tmp_path / "boxes.json", {"model": "detector"})
    assert stored(opened, "original") == [f"{version.name}.json", f"{version.name}.result.json"]
    other = open_labels("other")
    path = other.labels.path(other.scan, "original")
    assert path.read_text() == '{"boxes": [1, 2]}\n'
    assert path.name.endswith(".json")
    assert other.labels.info(other.scan, "original") == {"model": "detector"}


def test_the_callers_file_is_left_alone(open_labels, draw):
    opened = open_labels()
    source = draw()
    content = source.read_bytes()
    opened.store.save(opened.scan, "final", source, {})
    assert source.read_bytes() == content


def test_local_files_have_no_dots_but_that_of_the_extension_and_are_private(open_labels, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "version 1.5", draw(name="x.2.840.nii.gz"), {})
    path = opened.labels.path(opened.scan, "version 1.5")
    assert path.name.endswith(".nii.gz")
    assert path.name.count(".") == 2
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_removing_deletes_all_versions_and_nothing_else(open_labels, draw):
    opened = open_labels()
    for tag in ("final", "final2", "original"):
        opened.store.save(opened.scan, tag, draw(), {})
        opened.store.save(opened.scan, tag, draw(2), {})
    opened.store.remove(opened.scan, "final")
    assert opened.labels.tags(opened.scan) == ["final2", "original"]
    assert stored(opened) == []
    assert len(stored(opened, "final2")) == 4
    other = open_labels("other")
    assert other.labels.tags(other.scan) == ["final2", "original"]
    with pytest.raises(UnknownLabelError):
        opened.labels.path(opened.scan, "final")


def test_removing_leaves_files_of_others_in_the_resource(open_labels, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "final", draw(), {})
    path = opened.scan.path + quoted("resources", "MONAILABEL_final", "files", "notes.txt")
    opened.session.request("PUT", path, body=b"x", headers={"Content-Type": "application/octet-stream"})
    opened.store.remove(opened.scan, "final")
    assert stored(opened) == ["notes.txt"]
    assert opened.labels.tags(opened.scan) == []


def test_a_removed_label_can_be_saved_anew(open_labels, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "final", draw(1), {})
    opened.store.remove(opened.scan, "final")
    opened.store.save(opened.scan, "final", draw(2), {})
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), voxels(draw(2)))


@pytest.mark.parametrize("tag", ["final", "", "x" * 300])
def test_what_is_not_there_is_unknown_and_removing_it_is_no_error(open_labels, tag):
    opened = open_labels()
    opened.store.remove(opened.scan, tag)
    assert opened.labels.history(opened.scan, tag) == []
    for ask in (opened.labels.path, opened.labels.info, opened.labels.current):
        with pytest.raises(UnknownLabelError):
            ask(opened.scan, tag)


def test_keep_versions_prunes_the_oldest_only(open_labels, draw):
    opened = open_labels(keep_versions=2)
    versions = [opened.store.save(opened.scan, "final", draw(seed), {}).name for seed in range(4)]
    assert {name.partition(".")[0] for name in stored(opened)} == set(versions[2:])
    assert [version.name for version in opened.labels.history(opened.scan, "final")] == versions[:1:-1]


def test_labels_of_the_built_in_datastore_are_read_as_original(open_labels, draw):
    opened = open_labels()
    label = draw(5)
    path = opened.scan.path + quoted("resources", "AI", "files", "s1_e1_1_net.nii.gz")
    opened.session.request("PUT", path, body=label.read_bytes(), headers={"Content-Type": "application/octet-stream"})
    opened.catalog.renew()
    assert opened.labels.tags(opened.scan) == ["original"]
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "original")), voxels(label))
    assert opened.labels.info(opened.scan, "original") == {}
    with pytest.raises(LabelError, match="built-in datastore"):
        opened.store.remove(opened.scan, "original")
    opened.store.update_info(opened.scan, "original", {"sum": 4})
    assert opened.labels.info(opened.scan, "original") == {"sum": 4}
    opened.store.save(opened.scan, "original", draw(6), {})
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "original")), voxels(draw(6)))


def test_the_error_for_an_unknown_label_names_those_that_exist(open_labels, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "original", draw(), {})
    for ask in (opened.labels.path, opened.labels.info, opened.labels.description):
        with pytest.raises(UnknownLabelError, match=r"'final'.*tags original"):
            ask(opened.scan, "final")
    with pytest.raises(UnknownLabelError, match="version 2026"):
        opened.labels.path(opened.scan, "original", "20260101T000000000000Z-0123456789ab")
    with pytest.raises(UnknownLabelError):
        opened.store.update_info(opened.scan, "final", {})
    with pytest.raises(UnknownLabelError):
        opened.store.restore(opened.scan, "final", "20260101T000000000000Z-0123456789ab")
    assert opened.labels.history(opened.scan, "final") == []


@pytest.mark.parametrize(
    ("error", "bad"),
    [
        (LabelFileError, {"source": "missing"}),
        (LabelGeometryError, {"shape": (9, 9, 9)}),
        (LabelError, {"tag": ""}),
        (LabelError, {"tag": "x" * 300}),
        (LabelError, {"info": {"f": print}}),
        (LabelError, {"info": [1]}),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(open_labels, draw, tmp_path, error, bad):
    opened = open_labels()
    source = tmp_path / "no.nii.gz" if "source" in bad else draw(shape=bad.get("shape", SHAPE))
    with pytest.raises(error):
        opened.store.save(opened.scan, bad.get("tag", "final"), source, bad.get("info", {}))
    assert opened.store.waiting() == 0
    assert opened.labels.tags(opened.scan) == []
    opened.catalog.renew()
    assert [resource.label for resource in opened.scan.resources] == ["NIFTI"]


def test_read_only_refuses_every_write_without_a_request(open_labels, draw, monkeypatch):
    open_labels().store.save(open_labels().scan, "final", draw(), {})
    opened = open_labels("other", read_only=True)
    version = opened.labels.history(opened.scan, "final")[0].name
    scan = opened.scan
    sent = count_requests(opened, monkeypatch)
    for write in (
        lambda: opened.store.save(scan, "final", draw(), {}),
        lambda: opened.store.update_info(scan, "final", {}),
        lambda: opened.store.restore(scan, "final", version),
        lambda: opened.store.remove(scan, "final"),
        opened.store.replay,
    ):
        with pytest.raises(ReadOnlyError):
            write()
    assert sent == []


def test_infos_of_many_images_are_loaded_together(open_labels, draw, monkeypatch):
    mine, other = open_labels(), open_labels("other")
    scans = [mine.catalog.scan(f"{mine.settings.project[0]}/s1/e1/{scan}") for scan in (1, 2)]
    for scan in scans:
        for tag in ("final", "original"):
            mine.store.save(scan, tag, draw(), {"tag": tag})
    other.labels.load_infos(other.catalog.scans())
    sent = count_requests(other, monkeypatch)
    for scan in other.catalog.scans():
        assert {tag: other.labels.info(scan, tag)["tag"] for tag in other.labels.tags(scan)} == {
            "final": "final",
            "original": "original",
        }
    assert sent == []


def test_the_extension_of_a_label_is_known_without_fetching_it(open_labels, draw, tmp_path):
    opened = open_labels()
    (tmp_path / "result.json").write_text("{}")
    opened.store.save(opened.scan, "final", draw(), {})
    opened.store.save(opened.scan, "original", tmp_path / "result.json", {})
    assert opened.labels.current(opened.scan, "final").extension == ".nii.gz"
    assert opened.labels.current(opened.scan, "original").extension == ".json"


def test_of_several_labels_of_the_built_in_datastore_the_newest_counts(open_labels, draw):
    opened = open_labels()
    labels = {name: draw(seed, name).read_bytes() for seed, name in enumerate(["a.nii.gz", "b.nii.gz"])}
    scans = [opened.catalog.scan(f"{opened.settings.project[0]}/s1/e1/{scan}") for scan in (1, 2)]
    orders = {
        scan.image_id: names for scan, names in zip(scans, (sorted(labels), sorted(labels, reverse=True)), strict=True)
    }
    for turn in (0, 1):
        for scan in scans:
            name = orders[scan.image_id][turn]
            path = scan.path + quoted("resources", "AI", "files", name)
            headers = {"Content-Type": "application/octet-stream"}
            opened.session.request("PUT", path, body=labels[name], headers=headers)
        time.sleep(1.1 * (1 - turn))  # XNAT gives the time of a file in whole seconds
    opened.catalog.renew()
    for scan in opened.catalog.scans():
        newest = orders[scan.image_id][1]
        assert opened.labels.path(scan, "original").read_bytes() == labels[newest]


def description_of(opened, version):
    path = opened.scan.path + quoted("resources", "MONAILABEL_final", "files", f"{version.name}.json")
    return json.loads(opened.session.request("GET", path).content)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nrrd", "l.bin"])
def test_a_value_that_nobody_named_is_kept_and_noted_with_its_voxels(open_labels, tmp_path, caplog, name):
    array = np.zeros(SHAPE, np.uint8)
    array[0], array[1, :2], array[2, 0, :3] = 1, 2, 9
    path = tmp_path / name
    if name.endswith(".bin"):
        path.write_bytes(array.tobytes(order="F"))
    else:
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "l.nii.gz")
        if name.endswith(".nrrd"):
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "l.nii.gz")), str(path))
    opened = open_labels()
    info = {"label_info": [{"name": "spleen", "idx": 1}]}
    version = opened.store.save(opened.scan, "final", path, info)
    note = "values that no name was given for are kept: 2 (10 voxels), 9 (3 voxels)"
    assert description_of(opened, version)["notes"] == [note]
    assert note in caplog.text
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), array)
    # If nothing has a name, the description has only numbers.
    assert description_of(opened, opened.store.save(opened.scan, "final", path, {}))["notes"] == []


def test_a_value_without_a_name_does_not_become_another_organ_in_training(open_labels, tmp_path):
    array = np.zeros(SHAPE, np.uint8)
    array[0], array[1] = 1, 2
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "l.nii.gz")
    opened = open_labels()
    opened.store.save(opened.scan, "final", tmp_path / "l.nii.gz", {"label_info": [{"name": "liver", "idx": 1}]})
    other = open_labels("other", labels="spleen=1,liver=2")
    with pytest.raises(LabelError, match=r"the value 2 has no name \(30 voxels\), and 'liver' has this value"):
        other.labels.training_path(other.scan, "final")


def test_every_segment_of_an_older_slicer_is_stored(open_labels, tmp_path):
    array = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    stack = np.stack([array == value for value in (1, 2, 3)]).astype(np.uint8)
    lines = [
        "NRRD0004", "type: unsigned char", "dimension: 4", "space: left-posterior-superior", "encoding: raw",
        f"sizes: {' '.join(map(str, stack.shape))}", "space directions: none (2,0,0) (0,2,0) (0,0,3)",
        "kinds: list domain domain domain", "space origin: (-30,-40,-50)",
        "Segment0_Name:=liver", "Segment1_Name:=spleen", "Segment2_Name:=tumour",
    ]  # fmt: skip
    path = tmp_path / "old.seg.nrrd"
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + stack.tobytes(order="F"))
    opened = open_labels()
    version = opened.store.save(opened.scan, "final", path, {})
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), array)
    assert [segment["name"] for segment in description_of(opened, version)["segments"]] == ["liver", "spleen", "tumour"]
