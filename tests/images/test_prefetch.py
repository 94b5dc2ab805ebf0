"""Many images at once, and the likely next ones in the background."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from scan_bench import make_scan, make_series

from monailabel_xnat.catalog.scan import Resource
from monailabel_xnat.images.prefetch import BackgroundPrefetch


@pytest.fixture
def scans(bench, tmp_path):
    """Five scans with an image each."""
    return [
        bench.put("DICOM", make_series(tmp_path / f"series {number}", seed=number), number=str(number))
        for number in range(5)
    ]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The environment with which a worker in another process logs in, because no password is sent to it."""
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", "u")
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", "p")


BROKEN = make_scan(Resource("SNAPSHOTS", 1, 1), number="broken")


def ids(scans):
    return {str(scan.image_id) for scan in scans}


@pytest.mark.parametrize("workers", [1, 4])
def test_prefetch_fetches_all_images_and_says_which_failed(bench, scans, workers):
    images, told = bench.images(), []
    images.path(scans[0])
    report = images.prefetch([*scans, BROKEN, scans[1]], workers=workers, progress=told.append)
    assert ids(scans[:1]) == set(report.already_here)
    assert ids(scans[1:]) == set(report.fetched)
    assert list(report.failed) == [str(BROKEN.image_id)]
    assert "has no image" in report.failed[str(BROKEN.image_id)]
    assert all(images.local(scan) for scan in scans)
    assert [(step.done, step.total) for step in told] == [(done, 6) for done in range(1, 7)]
    assert [bool(step.error) for step in told].count(True) == 1


def test_a_second_prefetch_has_nothing_to_do(bench, scans):
    images = bench.images()
    images.prefetch(scans)
    asked = list(bench.archive.asked)
    report = images.prefetch(scans)
    assert (set(report.already_here), report.fetched, report.failed) == (ids(scans), (), {})
    assert bench.archive.asked == asked


def test_images_that_did_not_fit_into_the_budget_are_reported(bench, scans):
    images = bench.images(cache_budget=5e-6)
    report = images.prefetch(scans, workers=1)
    assert len(report.fetched) + len(report.failed) == 5
    assert len(report.failed) == 2, "three images of 1312 bytes fit"
    assert all("cache_budget is too small" in why for why in report.failed.values())


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_prefetch_takes_any_executor(bench, scans, kind):
    images = bench.images()
    context = multiprocessing.get_context("spawn")
    executor = ThreadPoolExecutor(2) if kind == "threads" else ProcessPoolExecutor(2, mp_context=context)
    with executor:
        report = images.prefetch([*scans, BROKEN], executor=executor)
        assert executor.submit(int, "3").result() == 3, "it is still the caller's"
    assert set(report.fetched) == ids(scans)
    assert list(report.failed) == [str(BROKEN.image_id)]
    assert all(images.local(scan) for scan in scans)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_each_worker_process_logs_in_once(bench, scans, method):
    images = bench.images()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as executor:
        report = images.prefetch(scans, executor=executor)
        workers = len(executor._processes)
    assert set(report.fetched) == ids(scans)
    assert bench.archive.logins <= workers <= 2


def test_a_task_for_a_worker_is_small_and_holds_no_password(bench, scans):
    images = bench.images(password="a secret of several words")
    task = pickle.dumps((images.elsewhere(), scans[0]))
    assert b"secret" not in task
    assert len(task) < 1500


def test_a_worker_without_a_password_says_what_to_set(bench, scans, monkeypatch):
    monkeypatch.delenv("MONAI_LABEL_XNAT_PASSWORD")
    monkeypatch.setenv("NETRC", os.devnull)
    images = bench.images()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        report = images.prefetch(scans[:1], executor=executor)
    (reason,) = report.failed.values()
    assert "MONAI_LABEL_XNAT_PASSWORD" in reason


def test_the_report_is_in_the_order_of_the_scans(bench, scans):
    wanted = [scans[3], BROKEN, scans[0], scans[4]]
    with ThreadPoolExecutor(3) as executor:
        report = bench.images().prefetch(wanted, executor=executor)
    assert report.fetched == tuple(str(scan.image_id) for scan in wanted if scan is not BROKEN)


class Inline(Executor):
    """An executor that works in the calling thread. The first task is cancelled."""

    def __init__(self):
        self.asked = 0

    def submit(self, work, *args):
        future = Future()
        self.asked += 1
        if self.asked == 1:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_result(work(*args))
        return future


def test_tasks_that_an_executor_cancels_are_reported(bench, scans):
    report = bench.images().prefetch(scans, executor=Inline())
    assert report.failed == {str(scans[0].image_id): "it was cancelled"}
    assert set(report.fetched) == ids(scans[1:])


def end_worker():
    os._exit(1)


def test_an_executor_whose_workers_have_died_is_reported(bench, scans):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        executor.submit(end_worker)
        report = bench.images().prefetch(scans, executor=executor)
        again = bench.images().prefetch(scans, executor=executor)
    for failed in (report.failed, again.failed):
        assert failed.keys() == ids(scans)
        assert all("terminated abruptly" in why or "not usable" in why for why in failed.values())


def test_a_prefetch_without_workers_is_an_error(bench, scans):
    with pytest.raises(ValueError, match="0 workers"):
        bench.images().prefetch(scans, workers=0)


def test_an_interrupted_prefetch_starts_nothing_more(bench, scans):
    images = bench.images()

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.prefetch(scans, workers=1, progress=interrupt)
    assert sum(1 for scan in scans if images.local(scan)) < 5


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_likely_next_images_are_fetched_in_the_background_as_many_as_set(bench, scans, caplog):
    images = bench.images(prefetch=2)
    images.expect(lambda count: [BROKEN, *scans][:count])
    wait_for(lambda: images.local(scans[0]))
    images.expect(lambda count: scans[1:][:count])
    wait_for(lambda: images.local(scans[1]) and images.local(scans[2]))
    assert images.local(scans[3]) is None
    assert caplog.records == [] or max(record.levelno for record in caplog.records) <= 20
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "xnat-prefetch"] == [True]


def test_nothing_is_started_after_closing(bench, scans):
    images = bench.images()
    images.expect(lambda count: scans[:1])
    wait_for(lambda: images.local(scans[0]))
    images.close()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "xnat-prefetch"])
    images.expect(lambda count: scans)
    assert not [thread for thread in threading.enumerate() if thread.name == "xnat-prefetch"]


def test_the_background_stays_within_a_share_of_the_budget(bench):
    images = bench.images()
    scans = [make_scan(Resource("DICOM", 10, 100), number=str(number)) for number in range(10)]
    started = []

    class Recorder:
        def local(self, scan):
            started.append(scan)
            return scan

        path = elsewhere = None

    background = BackgroundPrefetch(Recorder(), budget=2000)
    background.expect(lambda: scans)
    wait_for(lambda: len(started) == 2)
    background.close()
    assert started == scans[:2]
    images.close()
