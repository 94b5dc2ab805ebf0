"""Fixtures for tests of code that talks to XNAT; pytest finds them wherever this package is installed.

``xnat_sandbox`` is an empty XNAT-compatible server, ``xnat_datastore`` a MONAI Label datastore on it, and ``xnat_site``
a project of one's own, in the sandbox or, with ``pytest --live-xnat URL``, on a real server.
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
    """An XNAT site with a project that the test may fill and change as it likes.

    Parameters
    ----------
    settings
        Where the site is and who logs in.
    project
        ID of the project. It is empty at the start and deleted at the end.
    session
        A login, for requests of the test's own.
    is_live
        Whether it is a real server.
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
            The address of each session, below that of the site.
        """
        from monailabel_xnat.client.dicom_import import import_zip

        with tempfile.TemporaryDirectory() as scratch:
            packed = _zip(Path(folder), Path(scratch, "dicom.zip"))
            query = {"dest": f"/archive/projects/{self.project}", "overwrite": "append", "inbody": "true"}
            return import_zip(self.session, packed, query)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch."""
    parser.getgroup("xnat").addoption(
        _LIVE,
        metavar="URL",
        help="run the tests that use xnat_site against this XNAT server, in a project of their own; credentials from "
        "MONAI_LABEL_XNAT_USERNAME and MONAI_LABEL_XNAT_PASSWORD, or ~/.netrc",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, with a live server, what does not speak to it."""
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
    """Return an XNAT-compatible server: empty, with nobody logged in and no failures set."""
    _xnat_server.reset()
    return _xnat_server


@pytest.fixture
def xnat_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Yield an empty project on the sandbox; with ``--live-xnat`` one on that server, deleted at the end."""
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
    """Open datastores with settings of one's own, on the sandbox or on the test's project of the live server.

    They share a cache folder unless told otherwise, and are closed at the end.
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
    """Return a datastore on the sandbox (or the live project); ``refresh()`` it after the archive was filled."""
    return open_xnat_datastore()


def _login(sandbox: Sandbox) -> dict[str, Any]:
    return {"server": sandbox.url, "username": sandbox.username, "password": sandbox.password}


def _zip(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return target
