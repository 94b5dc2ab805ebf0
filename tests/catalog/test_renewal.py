"""When the listing is requested again, and what happens if that fails."""

from __future__ import annotations

import threading
import time

import pytest
from archive_rows import make_scan

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client import rows
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.errors import ServerError, TransferError


@pytest.fixture
def archive(xnat_sandbox):
    xnat_sandbox.archive.create_project("P")
    make_scan(xnat_sandbox.archive, "1")
    return xnat_sandbox.archive


class Clock:
    """A clock whose seconds pass only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_catalog(xnat_sandbox, archive, open_session, clock):
    def open_catalog(**settings):
        login = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
        session = open_session(Backoff(sleep=lambda seconds: None), **{**login, "project": "P", **settings})
        return Catalog(session, clock)

    return open_catalog


@pytest.fixture
def catalog(open_catalog):
    return open_catalog()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listings(sandbox, path):
    return [
        served
        for served in sandbox.requests
        if served.path == path and served.query.get("xsiType") == "xnat:imageSessionData"
    ]


JOINED, SITE = "/data/projects/P/experiments", "/data/experiments"


@pytest.mark.parametrize("times", [1, 2])
def test_a_failure_or_two_do_not_turn_joined_listings_off(xnat_sandbox, catalog, clock, times):
    xnat_sandbox.faults.add(JOINED, status=500, times=times)
    assert len(catalog.scans()) == 1
    assert len(listings(xnat_sandbox, SITE)) == (0 if times == 1 else 2)
    clock.now += 61
    xnat_sandbox.requests.clear()
    catalog.renew()
    assert (len(listings(xnat_sandbox, JOINED)), len(listings(xnat_sandbox, SITE))) == (1, 0)


def test_a_server_that_never_joins_is_asked_the_short_way_after_longer_and_longer_pauses(xnat_sandbox, catalog, clock):
    xnat_sandbox.faults.add(JOINED, status=400, times=None)
    asked = []
    for pause in [30] * 10 + [600] * 20:
        xnat_sandbox.requests.clear()
        catalog.renew()
        asked.append(len(listings(xnat_sandbox, JOINED)))
        assert len(listings(xnat_sandbox, SITE)) == 2
        clock.now += pause
    assert sum(asked[:10]) > 1
    assert sum(asked) < 10


def test_an_archive_without_scans_is_not_listed_the_long_way(xnat_sandbox, archive, catalog):
    with archive.store.write() as db:
        db.execute("DELETE FROM scans")
    assert catalog.scans() == []
    assert len(listings(xnat_sandbox, JOINED)) == 1
    assert len(listings(xnat_sandbox, SITE)) == 0


def test_a_renewal_that_dies_by_an_unforeseen_error_is_told_and_not_started_at_each_call(
    xnat_sandbox, catalog, clock, monkeypatch, caplog
):
    catalog.scans()
    tried = []

    def fail(*_):
        tried.append(1)
        raise ZeroDivisionError("never foreseen")

    monkeypatch.setattr(catalog, "_list", fail)
    clock.now += 61
    for _ in range(50):
        assert len(catalog.scans()) == 1
        time.sleep(0.002)
    wait_until(lambda: catalog.problem)
    assert "ZeroDivisionError: never foreseen" in catalog.problem
    for _ in range(50):
        catalog.scans()
    assert len(tried) == 1
    assert "could not be renewed" in caplog.text
    monkeypatch.undo()
    clock.now += 61
    catalog.scans()
    wait_until(lambda: not catalog.problem)


@pytest.mark.parametrize(
    "odd",
    [
        {"xnat:imagescandata/modality": 7},
        {"xnat:imagescandata/type": ["T1"]},
        {"label": None},
        {"xnat:imagescandata/frames": {"a": 1}},
        {"ID": 5},
    ],
    ids=str,
)
def test_odd_values_in_a_listing_end_no_renewal(xnat_sandbox, catalog, monkeypatch, odd):
    whole = rows.read_listing

    def with_odd_values(session, path, query, read):
        return whole(session, path, query, lambda found: read([{**row, **odd} for row in found]))

    monkeypatch.setattr(rows, "read_listing", with_odd_values)
    assert len(catalog.scans()) == 1


def test_a_listing_in_a_form_that_is_not_known_is_an_error_of_ours(catalog, monkeypatch):
    def fail(session, path, query, read):
        raise KeyError("surprise")

    monkeypatch.setattr(rows, "read_listing", fail)
    with pytest.raises(ServerError, match="surprise"):
        catalog.scans()


@pytest.mark.parametrize("max_age", [60, 3600])
def test_a_project_that_lists_quickly_is_renewed_within_seconds(archive, open_catalog, clock, max_age):
    catalog = open_catalog(max_age=max_age)
    assert len(catalog.scans()) == 1
    make_scan(archive, "2")
    clock.now += 4.9
    catalog.scans()
    clock.now += 0.2
    catalog.scans()
    wait_until(lambda: len(catalog.scans()) == 2)


def test_a_project_that_lists_slowly_is_renewed_when_it_is_as_old_as_max_age(xnat_sandbox, archive, catalog, clock):
    whole = catalog._list

    def slow(before):
        clock.now += 10
        return whole(before)

    catalog._list = slow
    catalog.scans()
    xnat_sandbox.requests.clear()
    clock.now += 59
    catalog.scans()
    time.sleep(0.2)
    assert len(xnat_sandbox.requests) == 0
    clock.now += 2
    catalog.scans()
    wait_until(lambda: len(xnat_sandbox.requests))
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "xnat-catalog"])


def test_what_another_server_saves_shows_within_seconds(xnat_sandbox, archive, open_xnat_datastore):
    datastore = open_xnat_datastore(project="P", prefetch=0)
    assert len(datastore.list_images()) == 1
    make_scan(archive, "2")
    wait_until(lambda: len(datastore.list_images()) == 2)


def test_images_that_a_short_listing_lacks_do_not_vanish(xnat_sandbox, archive, catalog):
    ids = catalog.ids()
    short = '{"ResultSet": {"Result": [], "totalRecords": "1"}}'
    xnat_sandbox.faults.add("/data/projects/P/experiments", json=short, times=None)
    with pytest.raises(TransferError, match="0 rows and says that they are 1"):
        catalog.renew()
    assert catalog.ids() == ids
