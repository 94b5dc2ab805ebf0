"""MONAI Label's strategies on a datastore in XNAT: the choice is MONAI Label's own, and the datastore is asked once."""

from __future__ import annotations

import random
import time
import warnings

import pytest

from monailabel_xnat.app.strategies import quick_choice

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, about itself
    from monailabel.tasks.activelearning.epistemic import Epistemic
    from monailabel.tasks.activelearning.first import First
    from monailabel.tasks.activelearning.random import Random

SCANS = 12
# MONAI Label's strategy writes a number with one digit for each image. Python writes at most 4,300 digits.
MANY = 4_400


class KeepingItsChoice(Random):
    """A strategy that chooses as MONAI Label does."""


class Own(Random):
    """A strategy that chooses by itself."""

    def __call__(self, request, datastore):
        return {"id": "mine"}


@pytest.fixture
def open_project(xnat_sandbox, open_xnat_datastore):
    def open_project(scans=SCANS, **settings):
        xnat_sandbox.archive.create_project("P")
        xnat_sandbox.archive.seed_sessions("P", sessions=scans, scans=1)
        return open_xnat_datastore(project="P", prefetch=0, **settings)

    return open_project


@pytest.fixture
def worked_on(open_project):
    """A project in which some images have scores, and some were handed out, earlier or just now."""
    datastore, now = open_project(), int(time.time())
    for number, image in enumerate(datastore.list_images()[::2]):
        handed_out = {"ts": now - 7 * 60 * number, "client_id": "ann"}
        scores = {"epistemic_entropy": [0.25, 0.5, 0.25][number % 3]} if number % 2 else {}
        datastore.update_image_info(image, {"strategy": {"s": handed_out, "other": {"ts": now}}, **scores})
    return datastore


@pytest.mark.parametrize("strategy", [Random(), KeepingItsChoice()])
def test_random_chooses_as_monai_label_does(worked_on, strategy):
    request, chosen = {"strategy": "s"}, []
    for seed in range(20):
        random.seed(seed)
        theirs = strategy(request, worked_on)
        random.seed(seed)
        ours = quick_choice(strategy)(request, worked_on)
        assert ours["id"] == theirs["id"]
        chosen.append(ours)
    assert len({choice["id"] for choice in chosen}) > 3
    for choice in chosen:
        handed_out = worked_on.get_image_info(choice["id"]).get("strategy", {}).get("s", {}).get("ts", 0)
        assert choice["weight"] == pytest.approx(time.time() - handed_out, abs=60)


@pytest.mark.parametrize("strategy", [Epistemic(), Epistemic(k=3), Epistemic(reset=600), Epistemic(key="other")])
def test_epistemic_chooses_as_monai_label_does(worked_on, strategy):
    for _ in range(SCANS):
        theirs = strategy({"strategy": "s"}, worked_on)
        ours = quick_choice(strategy)({"strategy": "s"}, worked_on)
        assert ours["id"] == theirs["id"]
        assert ours["epistemic_entropy"]["score"] == theirs["epistemic_entropy"]["score"]
        assert ours["epistemic_entropy"]["ts"] == pytest.approx(theirs["epistemic_entropy"]["ts"], abs=60)
        worked_on.update_image_info(ours["id"], {"strategy": {"s": {"ts": int(time.time())}}})


def test_images_handed_out_this_very_second_are_handed_out_again(worked_on):
    for image in worked_on.list_images():
        worked_on.update_image_info(image, {"strategy": {"s": {"ts": int(time.time()) + 60}}})
    assert quick_choice(Random())({"strategy": "s"}, worked_on)["id"] in worked_on.list_images()


def test_values_of_others_that_are_not_a_time_or_a_score_are_ignored(worked_on):
    for image in worked_on.list_images():
        worked_on.update_image_info(image, {"strategy": {"s": {"ts": "noon"}}, "epistemic_entropy": "high"})
    for strategy in (Random(), Epistemic()):
        assert quick_choice(strategy)({"strategy": "s"}, worked_on)["id"] in worked_on.list_images()


def test_there_is_nothing_to_choose_where_there_is_no_image(open_project):
    datastore = open_project(scans=0)
    for strategy in (Random(), Epistemic()):
        assert quick_choice(strategy)({"strategy": "s"}, datastore) is None


@pytest.mark.parametrize("strategy", [Own(), First(), lambda request, datastore: None])
def test_the_choice_of_other_strategies_is_their_own(strategy):
    assert quick_choice(strategy) is None


@pytest.mark.parametrize("strategy", [Random(), Epistemic()])
def test_a_next_sample_of_thousands_of_images_sends_the_claim_alone(xnat_sandbox, open_project, strategy):
    datastore = open_project(MANY, max_age=3600)
    choose, request = quick_choice(strategy), {"strategy": "s"}
    datastore.list_images()
    xnat_sandbox.requests.clear()
    first = datastore.hand_out(lambda: choose(request, datastore), "ann")["id"]
    assert [served.method for served in xnat_sandbox.requests] == ["PUT", "PUT", "GET"]  # the folder, the claim
    xnat_sandbox.requests.clear()
    assert datastore.hand_out(lambda: choose(request, datastore), "bob")["id"] != first
    assert len(xnat_sandbox.requests) == 3
