"""XNAT behind nginx, as sites have it: TLS, client certificates, a path, limits, gzip, restarts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.errors import LabelNotUploadedError, ServerError, ServerTimeoutError
from monailabel_xnat.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "labels"))

from label_archive import AFFINE, SHAPE, fill

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.skipif(not NGINX or not shutil.which("openssl"), reason="nginx or openssl is not installed"),
    pytest.mark.slow,
]
PREFIX, PASSWORD = "/imaging/xnat", "password-of-the-sandbox"
VOXELS = np.arange(210, dtype=np.int16).reshape(SHAPE)
LABEL = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
CONF = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; {user}
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  limit_req_zone $binary_remote_addr zone=each:1m rate=30r/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificates}/server.pem; ssl_certificate_key {certificates}/server.key;
    ssl_client_certificate {certificates}/ca.pem;
    {settings}
    location {prefix}/ {{
      proxy_pass http://127.0.0.1:{target};
      proxy_set_header Host $http_host;
      {limits}
    }}
  }}
}}
"""


def openssl(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate authority of our own, a certificate of the server and one of a client with its key."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    ca = ("-subj", "/CN=Own Authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(folder, *new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", *ca)
    for name in ("server", "client"):
        openssl(folder, *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    both = (folder / "client.pem").read_text() + (folder / "client.key").read_text()
    (folder / "client-and-key.pem").write_text(both)
    return folder


class Hospital:
    """A sandbox behind nginx. Both can be stopped and started again."""

    def __init__(self, folder, certificates):
        self._folder = folder
        self._certificates = certificates
        self._target = 0
        self._nginx = None
        (folder / "xnat").mkdir(mode=0o700)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"https://127.0.0.1:{self._port}{PREFIX}"
        self.start_xnat()
        with requests.Session() as admin:
            admin.auth = ("admin", PASSWORD)
            fill(self.sandbox.url, "P", admin)

    def start_xnat(self):
        users = {"admin": PASSWORD}
        self.sandbox = Sandbox(self._folder / "xnat", port=self._target, users=users, context=PREFIX).start()
        self._target = int(self.sandbox.url.removesuffix(PREFIX).rpartition(":")[2])

    def start(self, settings="", limits=""):
        """Start nginx with settings for the server and for the location. A running nginx is replaced."""
        self.stop()
        user = "user root;" if os.geteuid() == 0 else ""
        words = {"port": self._port, "target": self._target, "settings": settings, "limits": limits, "user": user}
        words |= {"folder": self._folder, "certificates": self._certificates, "prefix": PREFIX}
        conf = self._folder / "nginx.conf"
        conf.write_text(CONF.format(**words))
        self._nginx = subprocess.Popen([NGINX, "-c", str(conf), "-e", str(self._folder / "error.log")])
        ends = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                log = self._folder / "error.log"
                assert time.monotonic() < ends, log.read_text() if log.exists() else "nginx does not start"
                time.sleep(0.02)

    def stop(self):
        if self._nginx is not None:
            self._nginx.terminate()
            self._nginx.wait(20)
            self._nginx = None

    def close(self):
        self.stop()
        self.sandbox.stop()


@pytest.fixture
def hospital(tmp_path, certificates):
    made = Hospital(tmp_path, certificates)
    yield made
    made.close()


@pytest.fixture
def open_datastore(hospital, certificates, tmp_path):
    opened = []

    def open_datastore(cache="mine", **settings):
        given = {"ca_bundle": certificates / "ca.pem", "project": "P", "roi_write": "", "prefetch": 0, **settings}
        login = {"username": "admin", "password": PASSWORD, "environ": {}}
        opened.append(XNATDatastore(hospital.url, cache_path=tmp_path / cache, **login, **given))
        return opened[-1]

    yield open_datastore
    for datastore in opened:
        datastore.close()


@pytest.fixture
def impatient(monkeypatch):
    """Pauses before a repetition take no time."""
    patient = Backoff.__init__
    monkeypatch.setattr(Backoff, "__init__", lambda self, *_, **__: patient(self, sleep=lambda seconds: None))


@pytest.fixture
def drawn(tmp_path):
    path = tmp_path / "drawn.nii.gz"
    nibabel.save(nibabel.Nifti1Image(LABEL, AFFINE), path)
    return path


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def require_all_works(datastore, drawn, other):
    """Check that listing, reading and saving work, and that a datastore with an empty cache reads the same."""
    images = datastore.list_images()
    assert len(images) == 2
    for image in images:
        np.testing.assert_array_equal(voxels(datastore.get_image_uri(image)), VOXELS)
    datastore.save_label(images[0], drawn, "final", {"a": "ä"})
    other.refresh()
    require_in_xnat_once(other, images[0])
    assert other.get_label_info(images[0], "final")["a"] == "ä"


def require_in_xnat_once(datastore, image):
    assert len(datastore.label_history(image, "final")) == 1
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), LABEL)


def wait_until_sent(datastore):
    ends = time.monotonic() + 60
    while datastore.status().get("outbox"):
        assert time.monotonic() < ends, datastore.status()
        time.sleep(0.05)


def test_tls_with_an_own_authority_below_a_path_with_gzip(hospital, open_datastore, drawn):
    gzip = "gzip on; gzip_min_length 1; gzip_proxied any; gzip_types *;"
    hospital.start("", gzip)
    require_all_works(open_datastore(), drawn, open_datastore("other"))


def test_without_the_authority_the_error_names_the_setting(hospital, open_datastore):
    hospital.start()
    with pytest.raises(ServerError, match="ca_bundle"):
        open_datastore(ca_bundle="")


def test_a_client_certificate_is_sent_and_its_absence_is_an_error_that_says_so(
    hospital, open_datastore, certificates, drawn
):
    hospital.start("ssl_verify_client on;")
    with pytest.raises(ServerError, match=r"400 to PUT https://127.*") as caught:
        open_datastore()
    assert "certificate" in str(caught.value), str(caught.value)
    own = {"client_certificate": certificates / "client-and-key.pem"}
    require_all_works(open_datastore(**own), drawn, open_datastore("other", **own))


def test_a_label_that_is_too_large_for_the_proxy_waits_and_arrives_once_the_limit_is_raised(
    hospital, open_datastore, drawn
):
    hospital.start("client_max_body_size 100;")
    datastore = open_datastore()
    image = datastore.list_images()[0]
    with pytest.raises(LabelNotUploadedError, match="413") as caught:
        datastore.save_label(image, drawn, "final", {})
    assert "proxy" in str(caught.value)
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), LABEL)
    hospital.start()
    datastore.close()
    wait_until_sent(open_datastore())
    require_in_xnat_once(open_datastore("other"), image)


def test_a_label_that_xnat_stores_after_the_proxy_gave_up_is_there_once(hospital, open_datastore, drawn, impatient):
    hospital.start("", "proxy_read_timeout 1s;")
    datastore = open_datastore()
    image = datastore.list_images()[0]
    datastore.get_image_uri(image)
    hospital.sandbox.faults.add("MONAILABEL_final/files", method="PUT", delay=3.0, times=None)
    with pytest.raises(LabelNotUploadedError):
        datastore.save_label(image, drawn, "final", {})
    hospital.sandbox.faults.clear()
    time.sleep(3.5)  # XNAT completes the request, although nobody waits for the answer
    datastore.close()
    wait_until_sent(open_datastore())
    require_in_xnat_once(open_datastore("other"), image)


def test_an_image_that_takes_too_long_for_the_proxy_is_an_error_of_time(hospital, open_datastore, impatient):
    hospital.start("", "proxy_read_timeout 1s;")
    datastore = open_datastore()
    image = datastore.list_images()[0]
    hospital.sandbox.faults.add("NIFTI", delay=3.0, times=None)
    with pytest.raises(ServerTimeoutError, match="504"):
        datastore.get_image_uri(image)
    hospital.sandbox.faults.clear()
    np.testing.assert_array_equal(voxels(datastore.get_image_uri(image)), VOXELS)


@pytest.mark.parametrize("status", [429, 503])
def test_below_a_rate_limit_all_works(hospital, open_datastore, drawn, status):
    hospital.start("", f"limit_req zone=each burst=1 nodelay; limit_req_status {status};")
    datastore = open_datastore()
    require_all_works(datastore, drawn, open_datastore("other"))
    assert datastore.status()["connection"]["repeated"] > 0


def test_a_label_that_is_saved_while_xnat_restarts_behind_the_proxy_arrives_once(
    hospital, open_datastore, drawn, impatient
):
    hospital.start()
    datastore = open_datastore()
    image = datastore.list_images()[0]
    datastore.get_image_uri(image)
    hospital.sandbox.stop()
    with pytest.raises(LabelNotUploadedError, match="502"):
        datastore.save_label(image, drawn, "final", {})
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), LABEL)
    assert datastore.status()["outbox"] == 1
    hospital.start_xnat()
    datastore.save_label(image, drawn, "original", {})  # with a new login, for XNAT has forgotten the old one
    wait_until_sent(datastore)
    require_in_xnat_once(open_datastore("other"), image)
