"""A polite client.

It limits requests at a time and in a second, sends none while XNAT wants rest, and makes one heavy call at a time.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from monailabel_xnat.client.pace import Backoff, Pace, background_work, requested_pause
from monailabel_xnat.errors import ServerError, SettingsError


@pytest.fixture
def connect(xnat_sandbox, open_session):
    def make(sleep=time.sleep, **settings):
        login = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
        return open_session(Backoff(sleep=sleep), **{**login, **settings})

    return make


def in_threads(count, work):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def join(threads):
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def most_at_a_time(session, threads):
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, session.pace.summary()["under_way"])
        time.sleep(0.002)
    return most


@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_requests_than_allowed_are_under_way(xnat_sandbox, connect, connections):
    session = connect(connections=connections)
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/projects", delay=0.05, times=None)
    threads = in_threads(8, lambda: session.rows("/data/projects"))
    assert most_at_a_time(session, threads) == connections
    join(threads)
    assert session.pace.summary()["under_way"] == 0


def test_a_thread_that_reads_a_download_can_ask_something_else_meanwhile(connect):
    session = connect(connections=1)
    with session.stream("/data/projects", {"format": "json"}) as response:
        assert session.rows("/data/projects") == []
        assert response.json()["ResultSet"]["Result"] == []


def test_an_expired_login_is_renewed_within_the_only_connection(xnat_sandbox, connect):
    session = connect(connections=1)
    session.rows("/data/projects")
    xnat_sandbox.expire_sessions()
    with session.stream("/data/projects", {"format": "json"}) as response:
        assert response.status_code == 200


def test_requests_of_all_threads_keep_to_the_rate(xnat_sandbox, connect):
    session = connect(rate_limit=40, connections=8)
    session.rows("/data/projects")
    started = time.monotonic()
    join(in_threads(10, lambda: [session.rows("/data/projects") for _ in range(2)]))
    assert time.monotonic() - started > 19 / 40
    assert session.pace.summary()["requests"] >= 20


def read_many(session, count):
    """Read in the background, with as many threads as the catalog uses, and return them."""
    left = iter(range(count))

    def work():
        with background_work():
            for _ in left:
                session.rows("/data/projects")

    return in_threads(4, work)


@pytest.mark.parametrize("connections", [1, 2, 4])
def test_nobody_waits_until_the_facts_of_all_roi_collections_are_read(xnat_sandbox, connect, connections):
    session = connect(connections=connections)
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/projects", delay=0.1, times=None)
    readers = read_many(session, 60)
    time.sleep(0.15)
    for _ in range(3):
        started = time.monotonic()
        session.json("/xapi/siteConfig/buildInfo")
        assert time.monotonic() - started < 0.8
        assert any(thread.is_alive() for thread in readers)
    xnat_sandbox.faults.clear()
    join(readers)


def test_while_people_wait_the_background_gets_every_fourth_slot():
    pace, order = Pace(1), []
    first = pace.take()

    def person():
        with pace.slot():
            order.append("person")

    def background():
        with background_work():
            person_or_not = pace.take()
        order.append("background")
        person_or_not.release()

    threads = in_threads(8, person) + in_threads(2, background)
    while len(pace._people) + len(pace._background) < 10:
        time.sleep(0.01)
    first.release()
    join(threads)
    assert [place for place, kind in enumerate(order) if kind == "background"] == [3, 7]


def test_starts_are_evenly_spaced_whoever_asks():
    sleeps = []
    pace = Pace(4, rate_limit=10, sleep=sleeps.append, clock=lambda: 100.0)
    for _ in range(4):
        pace.admit()
    assert sleeps == pytest.approx([0.1, 0.2, 0.3])


def test_while_xnat_wants_rest_no_thread_asks_anything(xnat_sandbox, connect):
    session = connect()
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/projects", status=503, retry_after="1")
    first = in_threads(1, lambda: session.rows("/data/projects"))
    while not session.pace.summary().get("resting"):
        time.sleep(0.01)
    started = time.monotonic()
    xnat_sandbox.requests.clear()
    session.json("/xapi/siteConfig/buildInfo")
    assert time.monotonic() - started > 0.7
    join(first)
    assert "resting" not in session.pace.summary()
    assert session.pace.summary()["repeated"] == 1


def test_while_xnat_wants_a_long_rest_it_is_not_called_and_the_error_says_for_how_long(xnat_sandbox, connect):
    session = connect()
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/projects", status=429, retry_after="3600")
    with pytest.raises(ServerError, match="429"):
        session.rows("/data/projects")
    xnat_sandbox.requests.clear()
    with pytest.raises(ServerError, match=r"another 3(600|59\d) s") as caught:
        session.rows("/data/projects")
    assert caught.value.status == 429
    assert len(xnat_sandbox.requests) == 0
    assert session.pace.summary()["resting"] == pytest.approx(3600, abs=30)


def test_a_request_that_may_not_be_repeated_asks_for_rest_for_the_others(xnat_sandbox, connect):
    session = connect()
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/services/import", status=503, retry_after="600")
    with pytest.raises(ServerError, match="503"):
        session.request("POST", "/data/services/import", body=b"x")
    with pytest.raises(ServerError, match="not to be called"):
        session.rows("/data/projects")


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        ("7", None, 7.0),
        ("0.5", None, 0.5),
        ("Fri, 27 Nov 2026 10:00:30 GMT", "Fri, 27 Nov 2026 10:00:00 GMT", 30.0),
        ("Fri, 27 Nov 2026 09:00:00 GMT", "Fri, 27 Nov 2026 10:00:00 GMT", 0.0),
        ("-1", None, None),
        ("inf", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_both_forms_of_the_wish_to_wait_are_understood(header, date, seconds):
    assert requested_pause(header, date) == seconds


def test_without_the_server_s_clock_ours_counts():
    then = datetime.now(timezone.utc) + timedelta(seconds=60)
    assert requested_pause(format_datetime(then, usegmt=True)) == pytest.approx(60, abs=5)


def test_one_heavy_call_at_a_time_is_made_and_shown(connect):
    pace = connect().pace
    inside, most = [], []

    def work():
        with pace.heavy("listing"):
            inside.append(1)
            most.append(len(inside))
            assert pace.summary()["heavy"] == "listing"
            time.sleep(0.01)
            inside.pop()

    join(in_threads(6, work))
    assert most == [1] * 6
    assert "heavy" not in pace.summary()


@pytest.mark.parametrize("rate", ["-1", "nan", "inf", "fast"])
def test_a_rate_that_makes_no_sense_is_refused(connect, rate):
    with pytest.raises(SettingsError, match="rate_limit"):
        connect(rate_limit=rate)


def test_the_status_shows_the_pace_without_a_request(xnat_sandbox, open_xnat_datastore):
    xnat_sandbox.archive.create_project("P")
    datastore = open_xnat_datastore(project="P", connections=3, rate_limit=500)
    sent = len(xnat_sandbox.requests)
    shown = datastore.status()["connection"]
    assert (shown["connections"], shown["rate_limit"], shown["requests"]) == (3, 500.0, sent)
    assert (shown["repeated"], shown["under_way"]) == (0, 0)
    assert len(xnat_sandbox.requests) == sent
