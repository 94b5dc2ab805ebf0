"""Damaged answers of XNAT and strange ids: the result is right, or one of our errors, within limits."""

from __future__ import annotations

import json
import random
import resource
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_server import OddServer

from monailabel_xnat import XNATDatastore
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.roi import is_marked, marked_uid, may_store
from monailabel_xnat.client.site import describe_site
from monailabel_xnat.errors import XNATDatastoreError

_VALUES = (None, "", "x", "../..", "\ud800", -1, 0, 10**30, 1e300, True, [], {}, [[]], [None], {"": []}, "9" * 5000)
_EXAMPLES = 25
_HOP = ("connection", "transfer-encoding", "content-length", "content-encoding", "host", "accept-encoding")


@contextmanager
def little(megabytes, seconds):
    """Fail the test if it takes more additional memory than this, or more processor time."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    begin = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - begin < seconds


def damaged(answer, chance):
    """Replace some value of a JSON document, or remove it."""
    at, above = answer, []
    while isinstance(at, (dict, list)) and at and (not above or chance.random() < 0.85):
        key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        above.append((at, key))
        at = at[key]
    if not above or chance.random() < 0.05:
        return chance.choice(_VALUES)
    holder, key = above[-1]
    if chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice(_VALUES)
    return answer


class DamagingProxy:
    """A proxy in front of a server that damages some of its JSON answers, chosen by a seed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.chance = random.Random(0)
        self.share = 0.0

    def __call__(self, connection: socket.socket, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = dict(line.split(": ", 1) for line in lines if line.partition(":")[0].lower() not in _HOP)
        found = requests.request(method, self.url + path, headers=headers, data=body, timeout=60, allow_redirects=False)
        content = found.content
        if "json" in found.headers.get("Content-Type", "") and self.chance.random() < self.share:
            content = json.dumps(damaged(json.loads(content), self.chance)).encode()
            if self.chance.random() < 0.1:
                content = content[: self.chance.randrange(len(content) + 1)]
        kept = [f"{name}: {value}" for name, value in found.headers.items() if name.lower() not in _HOP]
        lengthened = [f"HTTP/1.1 {found.status_code} x", *kept, f"Content-Length: {len(content)}", "", ""]
        return "\r\n".join(lengthened).encode("latin-1") + (b"" if method == "HEAD" else content)


@pytest.fixture
def filled(xnat_sandbox, demo_dicom, open_xnat_datastore, tmp_path):
    """An image with a label, its copy for viewers and an info. Return both arrays."""
    xnat_sandbox.import_dicom(demo_dicom.cases[1].dicom, "P")
    datastore = open_xnat_datastore(project="P", roi_write="final", cache_path=tmp_path / "before")
    (image,) = datastore.list_images()
    volume = nibabel.load(datastore.get_image_uri(image))
    array = np.zeros(volume.shape, np.uint8)
    array[2:5, 2:6] = 1
    nibabel.save(nibabel.Nifti1Image(array, volume.affine), tmp_path / "label.nii.gz")
    datastore.save_label(image, str(tmp_path / "label.nii.gz"), "final", {"label_info": [{"name": "liver", "idx": 1}]})
    datastore.update_image_info(image, {"dice": 0.5})
    datastore.set_description("words")
    datastore.close()
    return image, np.asarray(volume.dataobj), array


def use(datastore, image, volume, label):
    """Use everything. Each result must be right, and each failure must be an error of this library."""

    def same(uri, array):
        assert not uri or np.array_equal(np.asarray(nibabel.load(uri).dataobj), array)

    for ask in (
        datastore.list_images,
        datastore.status,
        lambda: same(datastore.get_image_uri(image), volume),
        lambda: same(datastore.get_label_uri(image, "final"), label),
        lambda: datastore.get_image_info(image),
        lambda: datastore.get_label_info(image, "final"),
        lambda: datastore.label_history(image, "final"),
        lambda: datastore.training_set(),
        datastore.refresh,
        datastore.json,
        datastore.name,
        datastore.description,
        datastore.get_unlabeled_images,
        lambda: describe_site(datastore._session),
        lambda: may_store(datastore._session, "P"),
        lambda: datastore.scan(image),
    ):
        with suppress(XNATDatastoreError):
            ask()


@pytest.mark.slow
def test_damaged_json_answers_give_the_right_data_or_an_error_of_this_library(
    xnat_sandbox, filled, tmp_path, monkeypatch
):
    patient = Backoff.__init__
    monkeypatch.setattr(Backoff, "__init__", lambda self, *_, **__: patient(self, attempts=2, first_pause=0.001))
    proxy = DamagingProxy(xnat_sandbox.url)
    login = xnat_sandbox.username, xnat_sandbox.password
    with OddServer(proxy) as server, little(1500, 120):
        server.login = proxy
        for seed in range(_EXAMPLES):
            proxy.chance = random.Random(seed)
            proxy.share = 0.0 if seed == 0 else proxy.chance.choice([0.1, 0.3, 1.0])
            try:
                datastore = XNATDatastore(
                    server.url, *login, project="P", cache_path=tmp_path / str(seed), environ={}, prefetch=0, timeout=20
                )
            except XNATDatastoreError:
                assert seed
                continue
            try:
                use(datastore, *filled)
            except Exception as error:
                raise AssertionError(f"with seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                datastore.close()


@given(number=st.integers(0, 10**60) | st.text(max_size=70), root=st.sampled_from(["2.25.", "1.2.", ""]))
def test_any_text_for_a_uid_is_one_of_ours_or_not(number, root):
    assert is_marked(f"{root}{number}") is False
    assert is_marked(marked_uid(str(number))) is True


PARTS = st.text(max_size=8) | st.sampled_from(
    ["P", "..", ".", "%2e%2e", "a/b", "\ud800", "1?x=y", "1#", "\0", "a\r\nb"]
)
IDS = (
    st.text()
    | st.lists(PARTS, max_size=6).map("/".join)
    | st.binary(max_size=9).map(lambda text: text.decode("latin-1"))
)


@pytest.fixture
def datastore(xnat_sandbox, demo_dicom, open_xnat_datastore):
    xnat_sandbox.import_dicom(demo_dicom.cases[1].dicom, "P")
    return open_xnat_datastore(project="P")


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=IDS, tag=IDS)
def test_any_text_for_an_id_is_an_unknown_image_or_label_and_leads_nowhere(xnat_sandbox, datastore, text, tag):
    before = len(xnat_sandbox.requests)
    with little(300, 20):
        assert (datastore.get_image_uri(text), datastore.get_label_uri(text, tag)) == ("", "")
        assert datastore.get_image(text) is datastore.get_label(text, tag) is None
        assert datastore.get_image_info(text) == datastore.get_labels_by_image_id(text) == {}
        assert datastore.get_label_info(text, tag) == {}
        datastore.remove_label(text, tag)
        for refused in (
            lambda: datastore.update_image_info(text, {}),
            lambda: datastore.update_label_info(text, tag, {}),
            lambda: datastore.restore_label(text, tag, tag),
            lambda: datastore.label_history(text, tag),
            lambda: datastore.remove_image(text),
            lambda: datastore.scan(text),
        ):
            with pytest.raises(XNATDatastoreError):
                refused()
    asked = {sent.path for sent in list(xnat_sandbox.requests)[before:]}
    assert not [
        path for path in asked if ".." in path or not path.startswith(("/data/projects/P/", "/data/experiments"))
    ]
