from __future__ import annotations

import json

import numpy as np
import pytest

from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.convert import LabelMap, Segment
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.description import decode, describe, encode
from monailabel_xnat.labels.segments import name_segments

TEXTS = dict.fromkeys(Scan._fields, "")
SCAN = Scan(**{**TEXTS, "image_id": ImageId("P", "S", "E", "1"), "series_uid": "1.2.3", "frames": 4, "resources": ()})


def names(segments):
    return {segment.value: segment.name for segment in segments}


def test_the_description_says_what_is_in_the_label():
    array = np.zeros((4, 3, 2), np.uint8)
    array[0] = 2
    array[1, 0, 0] = 7
    label = LabelMap(array, np.diag([-1.0, -1.0, 3.0, 1.0]), (Segment(2, "spleen", (255, 0, 10)),))
    info = {"model": "net", "params": {"model_version": "3"}, "client_id": "slicer"}
    description = describe(SCAN, "final", info, label=label, file_type=".seg.nrrd", configured={"liver": 7})
    assert description["segments"] == [
        {"value": 2, "name": "spleen", "colour": [255, 0, 10], "voxels": 6},
        {"value": 7, "name": "liver", "colour": None, "voxels": 1},
    ]
    assert description["geometry"] == {
        "shape": [4, 3, 2],
        "affine": [[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]],
        "orientation": "LPS",
    }
    assert description["source"] == {
        "model": "net",
        "model_version": "3",
        "client": "slicer",
        "file_type": ".seg.nrrd",
    }
    assert description["info"] == info
    assert (description["image_id"], description["series_uid"], description["tag"]) == ("P/S/E/1", "1.2.3", "final")
    assert decode(encode(description)) == json.loads(json.dumps(description))


def test_a_model_names_its_values_by_number_or_by_several():
    info = {"params": {"label_names": {"spleen": 1, "kidney": [2, 3]}}}
    assert names(name_segments([1, 2, 3], (), info, {})) == {1: "spleen", 2: "kidney", 3: "kidney"}
    assert names(name_segments([2], (), {"params": {"label_names": ["a", "b"]}}, {})) == {2: "b"}


def test_numbers_in_label_info_count_where_they_fit():
    info = {"label_info": [{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 1}]}
    assert names(name_segments([1, 2], (), info, {})) == {1: "spleen", 2: "liver"}
    assert names(name_segments([5], (), {"label_info": [{"name": "tumour", "idx": 5}]}, {})) == {5: "tumour"}


def test_places_in_label_info_count_where_slicer_left_out_segments():
    info = {"label_info": [{"name": "spleen", "idx": 2}, {"name": "liver", "idx": 4}]}
    assert names(name_segments([1, 2], (), info, {})) == {1: "spleen", 2: "liver"}


def test_the_file_itself_is_believed_first_and_the_number_is_the_last_resort():
    info = {"label_info": [{"name": "other", "idx": 1}]}
    assert names(name_segments([1, 9], (Segment(1, "mine"),), info, {})) == {1: "mine", 9: "Segment_9"}


@pytest.mark.parametrize(
    "info",
    [
        {"label_info": "x"},
        {"label_info": [1, None, {"idx": 1}]},
        {"params": None},
        {"params": {"label_names": {"a": None, "b": "x", "c": True}}},
        {"params": {"label_names": 7}},
        {"label_info": [{"name": "a", "idx": 1, "color": ["x", 1, 2]}]},
    ],
)
def test_strange_infos_cause_no_error(info):
    assert [segment.value for segment in name_segments([1], (), info, {})] == [1]


def test_each_rewriting_differs_in_size():
    description = {"info": {"score": 1}}
    size = len(encode(description))
    for _ in range(200):
        content = encode(description, previous_size=size)
        assert len(content) != size
        assert decode(content) == description
        assert len(content) < 300
        size = len(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_json_that_is_not_a_description_is_refused(content):
    with pytest.raises(ValueError):
        decode(content)
