"""Faults of the network and the server during a download: the result is a whole image or an error, never a part."""

from __future__ import annotations

import pytest
from scan_bench import make_series

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import NotInArchiveError, ServerError, TransferError
from monailabel_xnat.images import Images
from monailabel_xnat.sandbox import Sandbox

ZIP = r"/resources/DICOM/files$"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    make_series(folder / "series")
    with Sandbox() as sandbox:
        sandbox.import_dicom(folder / "series", "P")
        yield sandbox


@pytest.fixture
def datastore(sandbox, tmp_path):
    values = {"server": sandbox.url, "username": "admin", "password": sandbox.password, "cache_path": tmp_path}
    settings = Settings.load(values, {}, {})
    session = Session(settings, Backoff(first_pause=0.001))
    images = Images(session, settings)
    scan = Catalog(session).scans()[0]
    yield images, scan
    sandbox.faults.clear()
    images.close()
    session.close()


PASSING = {
    "busy": {"status": 503},
    "cut": {"drop_after": 1000, "skip": 1},
    "ended early": {"truncate": 100, "skip": 1},
    "login forgotten": {"expire": True, "skip": 1},
    "login page": {"login_page": True, "skip": 1},
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_of_a_download_is_repeated(sandbox, datastore, fault):
    images, scan = datastore
    sandbox.faults.add(ZIP, method="GET", **fault)
    assert images.grid(scan).shape == (10, 12, 4)


LASTING = {
    "failing": ({"status": 500}, ServerError),
    "cut": ({"drop_after": 1000, "skip": 1}, TransferError),
    "ended early": ({"truncate": 100, "skip": 1}, TransferError),
    "login page": ({"login_page": True, "skip": 1}, ServerError),
    "gone": ({"status": 404, "skip": 1}, NotInArchiveError),
}


@pytest.mark.parametrize(("fault", "error"), LASTING.values(), ids=LASTING)
def test_a_lasting_fault_of_a_download_is_an_error_and_nothing_is_kept(sandbox, datastore, fault, error):
    images, scan = datastore
    sandbox.faults.add(ZIP, method="GET", times=None, **fault)
    with pytest.raises(error):
        images.path(scan)
    assert images.local(scan) is None
    assert images.cache.entries() == []
    assert [path.name for path in images.cache.folder.iterdir()] == [".locks"]
    sandbox.faults.clear()
    assert images.grid(scan).shape == (10, 12, 4)
