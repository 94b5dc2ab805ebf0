"""Fixtures for tests of code that talks to XNAT; pytest finds them wherever this package is installed.

``xnat_sandbox`` is an empty XNAT-compatible server, and ``xnat_datastore`` is a MONAI Label datastore on it.
``xnat_site`` is an empty project for one test: in the sandbox, or on a real server with ``pytest --live-xnat URL``.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from monailabel_xnat.client.session import Session
    from monailabel_xnat.config import Settings
    from monailabel_xnat.datastore import XNATDatastore
    from monailabel_xnat.sandbox import Sandbox

_LIVE = "--live-xnat"


@dataclass(frozen=True)
class Site:
    """An XNAT site with a project that a test may fill and change.

    Parameters
    ----------
    settings
        Address and login of the site.
    project
        ID of the project. It is empty at the start and deleted at the end.
    session
        A connection, for requests that the test itself sends.
    is_live
        Whether it is a real server, and not the sandbox.
    """

    settings: Settings
    project: str
    session: Session
    is_live: bool

    @property
    def url(self) -> str:
        """Address of the site."""
        return self.settings.server

    def import_dicom(self, folder: str | Path) -> list[str]:
        """Import a folder of DICOM into the project of the site.

        Returns
        -------
        list of str
            The path of each session that XNAT made or filled, below the address of the site.
        """
        from monailabel_xnat.client.dicom_import import import_zip

        with tempfile.TemporaryDirectory() as scratch:
            packed = _zip(Path(folder), Path(scratch, "dicom.zip"))
            query = {"dest": f"/archive/projects/{self.project}", "overwrite": "append", "inbody": "true"}
            return import_zip(self.session, packed, query)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--live-xnat``."""
    parser.getgroup("xnat").addoption(
        _LIVE,
        metavar="URL",
        help="run the tests that use xnat_site against this XNAT server, in a project of their own; credentials from "
        "MONAI_LABEL_XNAT_USERNAME and MONAI_LABEL_XNAT_PASSWORD, or ~/.netrc",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a live server, leave out the tests that do not use it."""
    if not config.getoption(_LIVE):
        return
    kept = [item for item in items if "xnat_site" in getattr(item, "fixturenames", ())]
    left_out = [item for item in items if item not in kept]
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session")
def _xnat_server() -> Iterator[Sandbox]:
    from monailabel_xnat.sandbox import Sandbox

    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def xnat_sandbox(_xnat_server: Sandbox) -> Sandbox:
    """Return an XNAT-compatible server that is empty, where nobody is logged in and no failures are set."""
    _xnat_server.reset()
    return _xnat_server


@pytest.fixture
def xnat_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Yield an empty project, on the sandbox or with ``--live-xnat`` on that server; it is deleted at the end."""
    from monailabel_xnat.client.items import delete, project_path, put
    from monailabel_xnat.client.session import Session
    from monailabel_xnat.config import Settings

    live = request.config.getoption(_LIVE)
    if live:
        settings = Settings.load({"server": live, "cache_path": tmp_path / "xnat-cache"}, environ=os.environ)
    else:
        sandbox: Sandbox = request.getfixturevalue("xnat_sandbox")
        settings = Settings.load({**_login(sandbox), "cache_path": tmp_path / "xnat-cache"}, environ={})
    project = f"monailabel_test_{secrets.token_hex(4)}"
    session = Session(settings)
    try:
        put(session, project_path(project), {"description": "made by an automatic test, which deletes it again"})
        put(session, f"{project_path(project)}/prearchive_code/4", {})  # imports go straight into the archive
        yield Site(settings, project, session, bool(live))
        delete(session, project_path(project))
    finally:
        session.close()


@pytest.fixture
def open_xnat_datastore(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., XNATDatastore]]:
    """Yield a function that opens a datastore with given settings.

    The datastore is on the sandbox, or on the project of this test on the live server. All datastores of a test share
    a cache folder, unless ``cache_path`` is given, and are closed at the end.
    """
    from monailabel_xnat.datastore import XNATDatastore

    given: dict[str, Any]
    if request.config.getoption(_LIVE):
        site: Site = request.getfixturevalue("xnat_site")
        given = {"server": site.url, "project": site.project, "environ": os.environ}
    else:
        given = {**_login(request.getfixturevalue("xnat_sandbox")), "environ": {}}
    given["cache_path"] = tmp_path / "xnat-cache"
    opened = []

    def open_datastore(**settings: Any) -> XNATDatastore:
        chosen = {**given, **settings}
        opened.append(XNATDatastore(chosen.pop("server"), **chosen))
        return opened[-1]

    yield open_datastore
    for datastore in opened:
        datastore.close()


@pytest.fixture
def xnat_datastore(open_xnat_datastore: Callable[..., XNATDatastore]) -> XNATDatastore:
    """Return a datastore on the sandbox (or the live project); call ``refresh()`` after you have filled the archive."""
    return open_xnat_datastore()


def _login(sandbox: Sandbox) -> dict[str, Any]:
    return {"server": sandbox.url, "username": sandbox.username, "password": sandbox.password}


def _zip(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return target
