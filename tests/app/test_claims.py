"""Next samples of several servers on one project: no image is given to two annotators at once."""

from __future__ import annotations

import threading
import warnings

import pytest

from monailabel_xnat import XNATAppMixin
from monailabel_xnat.images import claims

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, about itself
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.tasks.activelearning.first import First
    from monailabel.tasks.activelearning.random import Random

CASES = 3


class App(XNATAppMixin, MONAILabelApp):
    """The parts of an app that choose images."""

    def __init__(self, datastore):
        self.studies, self.conf, self._datastore = "http://xnat", {"datastore": "xnat"}, datastore
        self._auto_update_scoring = False
        self._strategies = {"first": First(), "random": Random(), "own": lambda request, datastore: self.own}
        self.own = None


@pytest.fixture
def open_app(xnat_sandbox, demo_dicom, open_xnat_datastore):
    for case in demo_dicom.cases[:CASES]:
        xnat_sandbox.import_dicom(case.dicom, "DEMO")

    def open_app(**settings):
        given = {"project": "DEMO", "series_description": "!*localizer*", "prefetch": 0, **settings}
        return App(open_xnat_datastore(**given))

    return open_app


def ask(app, strategy="first", client="user-xyz"):
    return app.next_sample({"strategy": strategy, "client_id": client}).get("id")


@pytest.mark.parametrize("strategy", ["first", "random"])
def test_servers_of_one_project_hand_each_image_out_once(open_app, strategy):
    servers = [open_app() for _ in range(CASES)]
    assert {ask(server, strategy) for server in servers} == set(servers[0].datastore().list_images())


def test_servers_that_are_asked_at_the_same_moment_hand_out_different_images(open_app):
    servers = [open_app() for _ in range(CASES)]
    begin, given = threading.Barrier(CASES), []

    def annotate(server):
        begin.wait()
        given.append(ask(server))

    annotators = [threading.Thread(target=annotate, args=(server,)) for server in servers]
    for annotator in annotators:
        annotator.start()
    for annotator in annotators:
        annotator.join()
    assert len(set(given)) == CASES


def test_two_people_at_one_server_get_different_images_and_one_person_the_same_again(open_app):
    app = open_app()
    ann, bob = ask(app, client="ann"), ask(app, client="bob")
    assert ann != bob
    assert ask(app, client="ann") == ann


def test_where_all_images_are_claimed_the_one_claimed_first_is_given(open_app):
    others = [open_app() for _ in range(CASES)]
    given = [ask(other) for other in others]
    late = open_app()
    assert ask(late) == given[0]
    assert set(late.datastore().get_unlabeled_images()) == set(given)


def test_a_claim_ends(open_app):
    first, other = open_app(claim_time=0.001), open_app(claim_time=0.001)
    assert ask(first) == ask(other)


def test_without_claims_nothing_is_written(xnat_sandbox, open_app):
    app = open_app(claim_time=0)
    xnat_sandbox.requests.clear()
    assert ask(app) == ask(open_app(claim_time=0))
    assert not [served for served in xnat_sandbox.requests if "claim" in served.path]


def test_a_clock_that_is_ahead_keeps_its_claim(open_app, monkeypatch):
    ahead, behind = open_app(), open_app()
    with monkeypatch.context() as patched:
        patched.setattr(claims.time, "time", lambda now=claims.time.time: now() + 60)
        given = ask(ahead)
    assert ask(behind) != given


def test_a_user_who_may_only_read_gets_next_samples_without_claims(xnat_sandbox, open_app, caplog):
    user = "collaborator"
    app = open_app(username=user, password=xnat_sandbox.users[user])
    assert ask(app) in app.datastore().list_images()
    assert "without claims" in caplog.text


def test_a_strategy_of_the_app_that_chooses_by_itself_is_obeyed(open_app):
    app = open_app()
    app.own = {"id": app.datastore().list_images()[1], "why": "it is mine"}
    assert app.next_sample({"strategy": "own"})["id"] == app.own["id"]
    app.own = None
    assert app.next_sample({"strategy": "own"}) == {}


def test_a_claim_takes_a_write_and_a_look_and_leaves_the_info_as_it_is(xnat_sandbox, open_app):
    app = open_app()
    datastore = app.datastore()
    image = sorted(datastore.list_images())[0]
    datastore.update_image_info(image, {"dice": 0.5})
    datastore._infos.flush()
    ask(app, client="somebody")
    xnat_sandbox.requests.clear()
    assert ask(app, client="somebody") == image
    methods = [served.method for served in xnat_sandbox.requests]
    assert methods == ["PUT", "GET"]
    assert datastore.get_image_info(image)["dice"] == 0.5
    assert len(xnat_sandbox.requests) == len(methods)
    assert open_app().datastore().get_image_info(image)["dice"] == 0.5
