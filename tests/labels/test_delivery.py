from __future__ import annotations

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from label_archive import AFFINE, SHAPE, stored, voxels

from monailabel_xnat.errors import (
    AccessDeniedError,
    CacheError,
    LabelGeometryError,
    LabelNotUploadedError,
    ServerError,
    TransferError,
    UnknownLabelError,
)
from monailabel_xnat.labels import delivery


@pytest.fixture
def away(open_labels, gate):
    """Labels of a datastore that has its image already. XNAT is away."""
    opened = open_labels(server=gate.url, timeout=5)
    opened.labels._images.path(opened.scan)
    gate.shut()
    return opened


def save_in_vain(opened, source, tag="final", info=None):
    with pytest.raises(LabelNotUploadedError) as caught:
        opened.store.save(opened.scan, tag, source, info or {})
    return caught.value


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_while_xnat_is_away_a_label_is_safe_and_says_where(away, draw):
    error = save_in_vain(away, draw(), info={"n": 1})
    folder = Path(re.search(r"safe in (\S+) ", str(error))[1])
    np.testing.assert_array_equal(voxels(folder / "label.nii.gz"), voxels(draw()))
    assert isinstance(error.__cause__, ServerError)
    assert away.store.waiting() == 1


def test_while_xnat_is_away_the_label_is_served_from_the_outbox(away, draw):
    save_in_vain(away, draw(1), info={"n": 1})
    save_in_vain(away, draw(2), info={"n": 2})
    assert away.labels.tags(away.scan) == ["final"]
    np.testing.assert_array_equal(voxels(away.labels.path(away.scan, "final")), voxels(draw(2)))
    assert away.labels.info(away.scan, "final") == {"n": 2}
    versions = away.labels.history(away.scan, "final")
    assert [version.is_pending for version in versions] == [True, True]
    np.testing.assert_array_equal(voxels(away.labels.path(away.scan, "final", versions[1].name)), voxels(draw(1)))


def test_another_process_of_this_machine_serves_it_as_well(away, gate, open_labels, draw):
    gate.open()
    other = open_labels(server=gate.url, timeout=5, read_only=True)
    other.catalog.scans()
    gate.shut()
    save_in_vain(away, draw())
    wait_until(lambda: other.labels.tags(other.scan) == ["final"])
    path = other.labels.path(other.scan, "final")
    gate.open()
    assert away.store.replay() == {}
    wait_until(lambda: other.store.waiting() == 0)
    assert other.labels.tags(other.scan) == ["final"]
    assert other.labels.path(other.scan, "final") == path


def test_the_info_of_a_waiting_label_can_change(away, gate, draw):
    save_in_vain(away, draw(), info={"a": 1})
    away.store.update_info(away.scan, "final", {"b": 2})
    gate.open()
    assert away.store.replay() == {}
    assert away.labels.info(away.scan, "final") == {"a": 1, "b": 2}


def test_a_waiting_label_can_be_removed(away, gate, draw):
    save_in_vain(away, draw())
    away.store.remove(away.scan, "final")
    assert away.labels.tags(away.scan) == []
    assert away.store.waiting() == 0


def test_replay_sends_waiting_labels_with_the_time_at_which_they_were_saved(away, gate, open_labels, draw):
    save_in_vain(away, draw(1))
    pending = away.labels.history(away.scan, "final")[0].name
    gate.open()
    other = open_labels("other")
    newer = other.store.save(other.scan, "final", draw(2), {}).name
    assert away.store.replay() == {}
    assert {name.partition(".")[0] for name in stored(away)} == {pending, newer}
    away.catalog.renew()
    np.testing.assert_array_equal(voxels(away.labels.path(away.scan, "final")), voxels(draw(2)))


def test_the_background_replays_by_itself(away, gate, open_labels, draw, monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.05)
    save_in_vain(away, draw())
    again = open_labels(server=gate.url, timeout=5)
    gate.open()
    wait_until(lambda: again.store.waiting() == 0)
    assert len(stored(again)) == 2


def test_the_next_start_replays(away, gate, open_labels, draw):
    save_in_vain(away, draw())
    away.store.close()
    gate.open()
    again = open_labels(server=gate.url)
    wait_until(lambda: again.store.waiting() == 0)
    assert len(stored(again)) == 2


def test_a_save_that_works_sends_what_waits_at_once(away, gate, draw):
    save_in_vain(away, draw(1), "original")
    gate.open()
    away.store.save(away.scan, "final", draw(2), {})
    wait_until(lambda: away.store.waiting() == 0)
    assert len(stored(away, "original")) == 2


def test_a_read_only_start_replays_nothing(away, gate, open_labels, draw):
    save_in_vain(away, draw())
    away.store.close()
    gate.open()
    again = open_labels(server=gate.url, read_only=True)
    time.sleep(0.3)
    assert again.store.waiting() == 1


def test_labels_are_never_sent_under_another_login(away, gate, open_labels, draw):
    save_in_vain(away, draw())
    away.store.close()
    gate.open()
    other = open_labels(server=gate.url, username="owner")
    assert other.store.replay() == {}
    assert other.store.waiting() == 1
    assert other.labels.tags(other.scan) == ["final"]
    assert stored(other) == []


def test_an_upload_that_was_cut_off_is_repeated_without_a_second_version(open_labels, draw, monkeypatch):
    opened = open_labels()
    send = requests.adapters.HTTPAdapter.send
    sent = []

    def cut_once(self, request, **options):
        answer = send(self, request, **options)
        if request.method == "PUT" and ".nii.gz" in request.url:
            sent.append(request.url)
            if len(sent) == 1:
                raise requests.ConnectionError("cut after XNAT had stored it")
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", cut_once)
    version = opened.store.save(opened.scan, "final", draw(), {})
    assert len(sent) == 2
    assert stored(opened) == [f"{version.name}.json", f"{version.name}.nii.gz"]


def test_a_torn_file_of_an_earlier_attempt_is_replaced(away, gate, open_labels, draw):
    save_in_vain(away, draw())
    name = away.labels.history(away.scan, "final")[0].name
    gate.open()
    resource = f"{away.scan.path}/resources/MONAILABEL_final/files/{name}.nii.gz"
    away.session.request("PUT", resource, body=b"torn", headers={"Content-Type": "application/octet-stream"})
    assert away.store.replay() == {}
    other = open_labels("other")
    np.testing.assert_array_equal(voxels(other.labels.path(other.scan, "final")), voxels(draw()))


def test_a_full_disk_refuses_the_label_and_leaves_nothing(open_labels, draw, monkeypatch):
    opened = open_labels()

    def full(path, data):
        raise OSError(28, "No space left on device")

    opened.labels._images.path(opened.scan)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CacheError, match="No space left"):
        opened.store.save(opened.scan, "final", draw(), {})
    monkeypatch.undo()
    assert opened.store.waiting() == 0
    assert stored(opened) == []


def test_many_threads_lose_nothing(open_labels, draw):
    opened = open_labels()
    sources = [draw(seed, f"{seed}.nii.gz") for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda source: opened.store.save(opened.scan, "final", source, {}), sources))
    assert len({version.name for version in versions}) == 8
    assert len(stored(opened)) == 16
    for version, source in zip(versions, sources, strict=True):
        np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final", version.name)), voxels(source))


def test_two_datastores_on_one_project_lose_nothing(open_labels, draw):
    stores = [open_labels("one"), open_labels("two")]
    sources = [draw(seed, f"{seed}.nii.gz") for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(stores[n % 2].store.save, stores[n % 2].scan, "final", source, {"n": n})
            for n, source in enumerate(sources)
        ]
        names = {job.result().name for job in jobs}
    fresh = open_labels("three")
    assert {version.name for version in fresh.labels.history(fresh.scan, "final")} == names
    assert len(stored(fresh)) == 12


def test_a_clock_behind_does_not_hide_what_was_saved_last(open_labels, draw, monkeypatch):
    opened, other = open_labels(), open_labels("other")
    opened.store.save(opened.scan, "final", draw(1), {})
    other.catalog.renew()

    class Behind(delivery.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2001)

    monkeypatch.setattr("monailabel_xnat.labels.store.datetime", Behind)
    monkeypatch.setattr("monailabel_xnat.labels.delivery.datetime", Behind)
    version = other.store.save(other.scan, "final", draw(2), {})
    assert version.saved_at.year > 2001
    opened.catalog.renew()
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), voxels(draw(2)))


def test_a_label_damaged_in_xnat_is_not_served(open_labels, draw):
    opened = open_labels()
    version = opened.store.save(opened.scan, "final", draw(), {})
    path = f"{opened.scan.path}/resources/MONAILABEL_final/files/{version.name}.nii.gz"
    headers = {"Content-Type": "application/octet-stream"}
    opened.session.request("PUT", path, query={"overwrite": "true"}, body=draw(9).read_bytes(), headers=headers)
    other = open_labels("other")
    with pytest.raises(TransferError, match=version.name):
        other.labels.path(other.scan, "final")
    assert list((other.settings.server_folder / "labels").iterdir()) == []


@pytest.mark.slow
def test_a_crash_at_any_point_loses_nothing_that_was_accepted(sandbox, project, open_labels, draw, tmp_path):
    source = draw(4)
    driver = Path(__file__).with_name("crash_driver.py")
    command = [
        sys.executable,
        str(driver),
        sandbox.url,
        sandbox.username,
        sandbox.password,
        project,
        str(tmp_path),
        str(source),
    ]
    steps = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=250).stdout)
    assert steps > 20
    outcomes = []
    for step in range(steps):
        opened = open_labels(f"crash{step}")
        accepted = opened.store.waiting() > 0 or len(stored(opened, f"t{step}")) > 0
        wait_until(lambda opened=opened: opened.store.waiting() == 0)
        opened.catalog.renew()
        names = stored(opened, f"t{step}")
        assert len(names) == (2 if accepted else 0), f"crash at step {step}"
        if accepted:
            np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, f"t{step}")), voxels(source))
        else:
            with pytest.raises(UnknownLabelError):
                opened.labels.path(opened.scan, f"t{step}")
        outcomes.append(accepted)
    # Before the label is accepted, nothing of it is there. Afterwards all of it is: there is one change, at one step.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


@pytest.fixture
def blind(open_labels, gate):
    """Labels of a datastore that knows which images exist, but has fetched none. XNAT is away."""
    opened = open_labels(server=gate.url, timeout=5)
    opened.catalog.scans()
    gate.shut()
    return opened


def test_a_label_is_safe_even_if_its_image_is_not_available(blind, gate, draw):
    save_in_vain(blind, draw(), info={"n": 1})
    np.testing.assert_array_equal(voxels(blind.labels.path(blind.scan, "final")), voxels(draw()))
    gate.open()
    assert blind.store.replay() == {}
    np.testing.assert_array_equal(voxels(blind.labels.path(blind.scan, "final")), voxels(draw()))
    assert blind.labels.info(blind.scan, "final") == {"n": 1}
    assert len(stored(blind)) == 2


def test_a_label_saved_without_its_image_is_turned_to_it_before_it_is_stored(blind, gate, draw):
    flipped = AFFINE.copy()
    flipped[:3, 3] += AFFINE[:3, 1] * (SHAPE[1] - 1)
    flipped[:3, 1] *= -1
    source = draw(affine=flipped)
    save_in_vain(blind, source)
    gate.open()
    assert blind.store.replay() == {}
    np.testing.assert_array_equal(voxels(blind.labels.path(blind.scan, "final")), voxels(source)[:, ::-1])
    assert "reoriented" in blind.labels.description(blind.scan, "final")["notes"][0]


def test_a_label_saved_without_its_image_that_does_not_fit_is_kept_but_not_served(blind, gate, open_labels, draw):
    save_in_vain(blind, draw(shape=(9, 9, 9)))
    gate.open()
    (reason,) = blind.store.replay().values()
    assert "does not lie on the grid" in reason
    assert blind.labels.tags(blind.scan) == []
    assert [entry.tag for entry in blind.labels.outbox.entries()] == ["final"]
    assert open_labels(server=gate.url).store.replay() == {}
    assert stored(blind) == []


def test_a_user_who_may_only_read_is_named_and_the_label_waits(open_labels, draw):
    opened = open_labels(username="collaborator")
    for tag in ("final", "original"):  # XNAT refuses a new resource with an error, and a file in an old one silently
        error = save_in_vain(opened, draw(), tag)
        assert isinstance(error.__cause__, AccessDeniedError)
        assert f"'collaborator' has no permission to edit in project {opened.settings.project[0]!r}" in str(error)
        owner = open_labels("owner")
        owner.store.save(owner.scan, "original", draw(), {})
    assert opened.store.waiting() == 2
    assert stored(owner) == []


def test_a_label_that_waits_for_a_permission_can_still_be_used(open_labels, draw):
    opened = open_labels(username="collaborator")
    save_in_vain(opened, draw())
    np.testing.assert_array_equal(voxels(opened.labels.path(opened.scan, "final")), voxels(draw()))


def test_a_member_keeps_saving_where_versions_cannot_be_pruned(open_labels, draw):
    member = open_labels(username="member", keep_versions=1)
    for seed in range(3):
        member.store.save(member.scan, "final", draw(seed), {})
    assert len(member.labels.history(member.scan, "final")) == 3


def test_concurrent_writers_elsewhere_cost_a_500_but_no_label(open_labels, sandbox, draw):
    opened = open_labels()
    sandbox.faults.add(r"MONAILABEL_final/files/", method="PUT", status=500, times=2)
    opened.store.save(opened.scan, "final", draw(), {})
    assert len(stored(opened)) == 2


def test_a_write_that_xnat_lost_is_repeated(open_labels, sandbox, draw):
    opened = open_labels()
    sandbox.faults.add(r"MONAILABEL_final/files/", method="PUT", lose=True, times=1)
    opened.store.save(opened.scan, "final", draw(), {})
    other = open_labels("other")
    np.testing.assert_array_equal(voxels(other.labels.path(other.scan, "final")), voxels(draw()))


def test_a_write_that_xnat_loses_every_time_is_an_error(open_labels, sandbox, draw):
    opened = open_labels()
    sandbox.faults.add(r"MONAILABEL_final/files/", method="PUT", lose=True, times=None)
    save_in_vain(opened, draw())
    sandbox.faults.clear()
    assert opened.store.replay() == {}
    assert len(stored(opened)) == 2


@pytest.mark.parametrize("status", [401, 403, 413, 500, 502, 503, 504])
def test_whatever_xnat_answers_the_label_is_safe(open_labels, sandbox, draw, status):
    opened = open_labels()
    opened.labels._images.path(opened.scan)
    sandbox.faults.add(r"MONAILABEL_", status=status, times=None)
    error = save_in_vain(opened, draw())
    assert opened.store.waiting() == 1
    assert sandbox.password not in str(error)
    sandbox.faults.clear()
    assert opened.store.replay() == {}
    assert len(stored(opened)) == 2


def test_a_login_that_expires_midway_is_renewed(open_labels, sandbox, draw):
    opened = open_labels()
    sandbox.faults.add(r"MONAILABEL_final/files/", method="PUT", expire=True, times=1)
    opened.store.save(opened.scan, "final", draw(), {})
    assert len(stored(opened)) == 2


@pytest.mark.parametrize("fault", [{"truncate": 10}, {"drop_after": 10}])
def test_a_download_that_breaks_off_is_never_served_as_a_label(open_labels, sandbox, draw, fault):
    owner, other = open_labels("owner"), open_labels("other")
    owner.store.save(owner.scan, "final", draw(), {})
    other.catalog.renew()
    sandbox.faults.add(r"MONAILABEL_final/files/.*nii.gz", method="GET", times=None, **fault)
    with pytest.raises(ServerError):
        other.labels.path(other.scan, "final")
    sandbox.faults.clear()
    np.testing.assert_array_equal(voxels(other.labels.path(other.scan, "final")), voxels(draw()))


def test_a_login_page_is_never_served_as_a_label(open_labels, sandbox, draw):
    owner, other = open_labels("owner"), open_labels("other")
    owner.store.save(owner.scan, "final", draw(), {})
    other.catalog.renew()
    sandbox.faults.add(r"MONAILABEL_final/files/.*nii.gz", method="GET", times=None, login_page=True)
    with pytest.raises(ServerError):
        other.labels.path(other.scan, "final")


def test_a_label_that_does_not_fit_is_refused_even_if_xnat_was_away_for_a_moment(open_labels, sandbox, draw):
    opened = open_labels()
    opened.catalog.scans()
    sandbox.faults.add("/resources/NIFTI/", status=503, times=4)
    with pytest.raises(LabelGeometryError):
        opened.store.save(opened.scan, "final", draw(shape=(9, 9, 9)), {})
    assert opened.store.waiting() == 0
    assert stored(opened) == []


def test_a_disk_that_is_full_after_the_upload_does_not_fail_the_save(open_labels, draw):
    opened = open_labels()
    opened.settings.server_folder.mkdir(parents=True, exist_ok=True)
    (opened.settings.server_folder / "labels").write_text("in the way")
    opened.store.save(opened.scan, "final", draw(), {})
    assert len(stored(opened)) == 2
    assert opened.store.waiting() == 0
    with pytest.raises(CacheError, match="labels"):
        opened.labels.path(opened.scan, "final")


def test_removing_an_image_removes_the_labels_that_wait_for_it(away, draw):
    save_in_vain(away, draw())
    away.store.forget(away.scan)
    assert away.store.waiting() == 0


def test_an_outbox_that_cannot_be_read_is_reported(open_labels, tmp_path):
    opened = open_labels()
    opened.settings.server_folder.mkdir(parents=True, exist_ok=True)
    (opened.settings.server_folder / "outbox").write_text("in the way")
    with pytest.raises(CacheError, match="outbox"):
        open_labels()


@pytest.mark.parametrize("folders", ["one", "several"])
def test_processes_that_save_at_once_lose_nothing(sandbox, project, open_labels, draw, tmp_path, folders):
    driver = Path(__file__).with_name("save_driver.py")
    login = [sandbox.url, sandbox.username, sandbox.password, project]
    sources = [str(draw(seed, f"{seed}.nii.gz")) for seed in range(3)]
    cache = [str(tmp_path / ("shared" if folders == "one" else f"machine{n}")) for n in range(3)]
    processes = [
        subprocess.Popen([sys.executable, str(driver), *login, folder, *sources], stdout=subprocess.PIPE)
        for folder in cache
    ]
    names = [name for process in processes for name in process.communicate(timeout=120)[0].decode().split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(names)) == 9
    opened = open_labels()
    assert {version.name for version in opened.labels.history(opened.scan, "final")} == set(names)


def test_two_processes_may_replay_one_outbox_at_once(away, gate, open_labels, draw):
    for seed in range(3):
        save_in_vain(away, draw(seed))
    other = open_labels(server=gate.url, timeout=5)
    gate.open()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda opened: opened.store.replay(), (away, other)))
    assert results == [{}, {}]
    assert len(stored(away)) == 6
    assert len(away.labels.history(away.scan, "final")) == 3
    assert len(other.labels.history(other.scan, "final")) == 3


def test_an_alias_token_sends_what_its_user_saved(away, gate, open_labels, draw):
    save_in_vain(away, draw())
    away.store.close()
    gate.open()
    token = away.session.json("/data/services/tokens/issue")
    again = open_labels(server=gate.url, username=token["alias"], password=token["secret"])
    wait_until(lambda: again.store.waiting() == 0)
    assert len(stored(again)) == 2


def test_people_who_save_at_once_are_not_told_that_0_labels_wait(open_labels, draw, caplog):
    opened = open_labels()
    label = draw()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: opened.store.save(opened.scan, f"tag{number}", label, {}), range(24)))
    assert opened.store.waiting() == 0
    assert "still wait" not in caplog.text
