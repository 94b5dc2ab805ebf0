"""Active learning of MONAI Label: strategies and scoring, and the facts that they store in XNAT for all servers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from clinic import PROJECT, clinic
from label_server import environment, label_server

from monailabel_xnat import XNATDatastore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # Claims are off, so that the strategies must remember which images were handed out.
    with clinic(tmp_path_factory.mktemp("clinic"), xnat_claim_time="0") as served:
        yield served


def sample(url, strategy, client="ann"):
    answer = requests.post(f"{url}/activelearning/{strategy}", json={"client_id": client}, timeout=120)
    answer.raise_for_status()
    return answer.json()


def in_xnat(server, image, key, patience=60):
    """Return the info of an image that is in XNAT, as a process that has just started reads it."""
    login = server.sandbox.url, server.sandbox.username, server.sandbox.password
    until = time.monotonic() + patience
    while time.monotonic() < until:
        cache = server.app.parent / f"looking-{time.monotonic_ns()}"
        with XNATDatastore(*login, PROJECT, cache_path=cache, environ={}) as datastore:
            info = datastore.get_image_info(image)
        if key in info:
            return info[key]
        time.sleep(0.5)
    raise AssertionError(f"XNAT does not hold {key}")


@pytest.mark.parametrize(("strategy", "place"), [("first", 0), ("last", -1)])
def test_first_and_last_give_an_image_and_write_down_to_whom(server, strategy, place):
    given = sample(server.url, strategy)
    assert given["id"] == server.image(place)
    assert Path(given["path"]).is_file()
    remembered = in_xnat(server, given["id"], "strategy")[strategy]
    assert remembered["client_id"] == "ann"
    assert remembered["ts"] == pytest.approx(time.time(), abs=120)


def test_epistemic_gives_what_the_model_doubts_most_and_goes_on_after_a_restart(server):
    server.call("POST", "/scoring/epistemic", json={}).raise_for_status()
    scoring = server.finished("scoring")
    assert scoring["status"] == "DONE", "\n".join(scoring["details"])
    scores = {image: in_xnat(server, image, "epistemic_entropy") for image in server.images}
    assert len(set(scores.values())) == len(scores)
    most, second, third = sorted(scores, key=scores.get, reverse=True)

    until = time.monotonic() + 60  # another process has scored; the server shows that after its next listing
    while server.json("/datastore/image/info", image=third).get("epistemic_entropy") != scores[third]:
        assert time.monotonic() < until, "the server does not show the scores"
        time.sleep(0.5)
    given = sample(server.url, "epistemic")
    assert (given["id"], given["epistemic_entropy"]) == (most, scores[most])
    assert sample(server.url, "epistemic")["id"] == second
    assert "epistemic" in in_xnat(server, second, "strategy")

    folder = server.app.parent / "again"
    folder.mkdir()
    conf = {"datastore": "xnat", "xnat_project": PROJECT, "xnat_prefetch": "0", "xnat_claim_time": "0"}
    environ = {**environment(server.sandbox, folder), "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
    with label_server(server.app, server.sandbox.url, conf, environ) as url:
        assert sample(url, "epistemic")["id"] == third
        assert sample(url, "epistemic")["id"] == most

    server.call("POST", "/scoring/epistemic", json={}).raise_for_status()
    scoring = server.finished("scoring")
    assert "'skipped': 3" in "\n".join(scoring["details"]), scoring["details"]
