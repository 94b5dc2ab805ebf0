"""Users of a sandbox, and a small project in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from monailabel_xnat.sandbox import Sandbox


class Api:
    """The requests of one user to a sandbox. Each answer is returned as it comes."""

    def __init__(self, sandbox, login: str = "admin") -> None:
        self.url = sandbox.url
        self.http = requests.Session()
        self.http.auth = (login, sandbox.users[login])

    def ask(self, method: str, path: str, data=None, headers=None, **query) -> requests.Response:
        return self.http.request(method, self.url + path, params=query, data=data, headers=headers, timeout=30)

    def get(self, path: str, headers=None, **query) -> requests.Response:
        return self.ask("GET", path, headers=headers, **query)

    def rows(self, path: str, **query) -> list[dict[str, str]]:
        answer = self.get(path, format="json", **query)
        assert answer.status_code == 200, answer.text
        return answer.json()["ResultSet"]["Result"]

    def put(self, path: str, data=None, kind: str | None = "application/octet-stream", **query) -> requests.Response:
        return self.ask("PUT", path, data, {"Content-Type": kind} if data is not None and kind else None, **query)

    def post(self, path: str, data=None, kind: str | None = "application/zip", **query) -> requests.Response:
        return self.ask("POST", path, data, {"Content-Type": kind} if data is not None and kind else None, **query)

    def delete(self, path: str, **query) -> requests.Response:
        return self.ask("DELETE", path, **query)

    def made(self, path: str, data=None, **query) -> str:
        """PUT an object, which must succeed, and return the text of the answer."""
        answer = self.put(path, data, **query)
        assert answer.status_code in (200, 201), (path, answer.status_code, answer.text)
        return answer.text

    def close(self) -> None:
        self.http.close()


@dataclass(frozen=True)
class Made:
    """IDs and addresses of a project P with subject sub1, CT session s1 and its scan 1 of type T1."""

    subject_id: str
    session_id: str

    long = "/data/projects/P/subjects/sub1/experiments/s1"
    scan = long + "/scans/1"

    @property
    def session(self) -> str:
        return f"/data/experiments/{self.session_id}"


@pytest.fixture
def user(xnat_sandbox):
    """Return a function from a login to the :class:`Api` of that user."""
    opened = []

    def open_api(login: str = "admin") -> Api:
        opened.append(Api(xnat_sandbox, login))
        return opened[-1]

    yield open_api
    for api in opened:
        api.close()


@pytest.fixture
def admin(user) -> Api:
    return user("admin")


@pytest.fixture
def anonymising():
    """Yield a sandbox whose site anonymises, and the :class:`Api` of its administrator."""
    with Sandbox(anonymise=True) as sandbox:
        api = Api(sandbox)
        yield sandbox, api
        api.close()


@pytest.fixture
def made(admin) -> Made:
    """Make a project with one scan, without files."""
    admin.made("/data/projects/P")
    subject = admin.made("/data/projects/P/subjects/sub1")
    session = admin.made(Made.long, xsiType="xnat:ctSessionData")
    admin.made(Made.scan, **{"xsiType": "xnat:ctScanData", "xnat:ctScanData/type": "T1 w/contrast"})
    return Made(subject, session)


@pytest.fixture
def shared() -> Path:
    """Return the folder of real data beside the repository."""
    folder = Path(__file__).parents[2].parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder of shared data")
    return folder
