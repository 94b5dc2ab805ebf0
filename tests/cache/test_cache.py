"""The folder of images: its entries are complete, made once, within the budget, and for one user."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from monailabel_xnat.errors import CacheError
from monailabel_xnat.images.cache import Cache, CachedImage


def make(
    cache: Cache, key: str, content: bytes = b"voxels", seen: str = "now", form: str = "nii", mark: str = "a"
) -> CachedImage:
    """Make an entry as the images do."""
    with cache.lock(key), cache.making(key) as part:
        made = part / "made"
        made.write_bytes(content)
        path = cache.folder / key / f"{key}_{mark}.nii"
        entry = CachedImage(path, form="nii", image_id=key, fingerprint=mark, seen="now", size=0, sha256="")
        return cache.put(made, entry)


def make_half(cache: Cache, failure: Exception, need: int = 0) -> None:
    """Start to make an entry and fail."""
    with cache.lock("one"), cache.making("one", need) as part:
        (part / "half").write_bytes(b"half")
        raise failure


def unused_since(entry: CachedImage, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(entry.record, (then, then))


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path / "server" / "images")
    yield cache
    cache.close()


def keys(cache: Cache) -> set[str]:
    return {entry.key for entry in cache.entries()}


def test_an_entry_of_the_cache_is_returned_as_it_was_put(cache):
    entry = make(cache, "one", b"abc")
    assert cache.find("one", "nii") == [entry]
    assert (entry.path.read_bytes(), entry.size) == (b"abc", 3)
    assert cache.find("one", "dicom") == cache.find("two", "nii") == []


def test_another_process_finds_an_entry_of_the_cache(cache):
    entry = make(cache, "one")
    assert Cache(cache.folder).find("one", "nii") == [entry]


def test_only_this_user_can_look_into_it(cache, monkeypatch):
    previous = os.umask(0)
    try:
        make(cache, "one")
    finally:
        os.umask(previous)
    for path in [cache.folder, *cache.folder.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert stat.S_IMODE(cache.folder.parent.stat().st_mode) == 0o700


def test_a_folder_that_was_open_to_others_is_closed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o755)
    assert stat.S_IMODE(Cache(tmp_path / "images").folder.stat().st_mode) == 0o700


def test_a_failed_entry_leaves_nothing(cache):
    with pytest.raises(ValueError):
        make_half(cache, ValueError())
    assert not (cache.folder / "one").exists()


def test_an_entry_without_a_record_does_not_count(cache):
    entry = make(cache, "one")
    entry.record.unlink()
    assert cache.find("one", "nii") == cache.entries() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}', b'{"version": 1}', b"\xff"])
def test_a_damaged_record_does_not_count(cache, content):
    entry = make(cache, "one")
    entry.record.write_bytes(content)
    assert cache.find("one", "nii") == cache.entries() == []


def test_a_record_whose_image_is_gone_does_not_count(cache):
    entry = make(cache, "one")
    entry.path.unlink()
    assert cache.find("one", "nii") == []
    assert not cache.is_there(entry)


def test_verify_finds_a_flipped_bit(cache):
    good, bad = make(cache, "good", bytes(1000)), make(cache, "bad", bytes(1000))
    content = bytearray(bad.path.read_bytes())
    content[500] ^= 1
    bad.path.write_bytes(content)
    assert cache.verify() == [bad]
    assert cache.verify(remove_damaged=True) == [bad]
    assert cache.verify() == []
    assert cache.entries() == [good]


def test_verify_finds_what_changed_in_a_folder(cache):
    with cache.lock("one"), cache.making("one") as part:
        for name in ("a.dcm", "deep/b.dcm"):
            (part / "made" / name).parent.mkdir(parents=True, exist_ok=True)
            (part / "made" / name).write_bytes(b"x")
        new = CachedImage(cache.folder / "one" / "one_a", "dicom", "one", "a", "now", 0, "")
        entry = cache.put(part / "made", new)
    assert (cache.verify(), entry.size) == ([], 2)
    (entry.path / "deep" / "b.dcm").unlink()
    assert cache.verify() == [entry]


def test_the_budget_evicts_what_was_used_longest_ago(tmp_path):
    cache = Cache(tmp_path, budget=2500)
    unused_since(make(cache, "used lately", bytes(1000)), 10)
    unused_since(make(cache, "used long ago", bytes(1000)), 1000)
    make(cache, "new", bytes(1000))
    assert keys(cache) == {"new", "used lately"}


def test_asking_for_an_image_keeps_it(tmp_path):
    cache = Cache(tmp_path, budget=2500)
    first, second = make(cache, "first", bytes(1000)), make(cache, "second", bytes(1000))
    unused_since(first, 100)
    unused_since(second, 50)
    cache.use(first)
    make(cache, "third", bytes(1000))
    assert keys(cache) == {"first", "third"}


def test_an_eviction_that_meets_the_removal_of_another_process_goes_on(tmp_path):
    cache = Cache(tmp_path / "images", budget=1)
    cache.folder.mkdir()
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            for number in range(50):
                (cache.folder / f"image_{number}").mkdir(exist_ok=True)
            for number in range(50):
                (cache.folder / f"image_{number}").rmdir()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(200):
            assert cache.entries() == []
            cache.evict()
    finally:
        stop.set()
        other.join()
    cache.close()


def test_an_image_that_a_thread_uses_is_not_evicted(tmp_path):
    cache = Cache(tmp_path, budget=1500)
    entry = make(cache, "in use", bytes(1000))
    used, done = threading.Event(), threading.Event()

    def work():
        cache.use(entry)
        used.set()
        done.wait(30)

    worker = threading.Thread(target=work)
    worker.start()
    used.wait(30)
    unused_since(entry, 1000)
    make(cache, "other", bytes(1000))
    assert keys(cache) == {"in use", "other"}
    done.set()
    worker.join()
    cache.prune()
    assert keys(cache) == {"other"}


def test_an_entry_that_is_being_made_is_not_evicted(tmp_path):
    cache = Cache(tmp_path, budget=100)
    entry = make(cache, "one", bytes(50))
    unused_since(entry, 100)
    with cache.lock("one"):
        threaded = threading.Thread(target=make, args=(cache, "two", bytes(90)))
        threaded.start()
        threaded.join()
        assert keys(cache) == {"one", "two"}


def test_a_single_image_larger_than_the_budget_is_given_all_the_same(tmp_path, caplog):
    cache = Cache(tmp_path, budget=10)
    make(cache, "large", bytes(1000))
    assert keys(cache) == {"large"}
    assert "all in use" in caplog.text


def hold_until_killed(folder: str, ready) -> None:
    cache = Cache(Path(folder))
    cache.hold(["held"])
    ready.set()
    time.sleep(60)


def test_an_image_that_another_process_holds_is_not_evicted_until_that_ends(tmp_path):
    cache = Cache(tmp_path, budget=1500)
    unused_since(make(cache, "held", bytes(1000)), 1000)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold_until_killed, args=(str(tmp_path), ready))
    holder.start()
    try:
        assert ready.wait(60)
        make(cache, "other", bytes(1000))
        assert keys(cache) == {"held", "other"}
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    cache.prune()
    assert keys(cache) == {"other"}


def test_holding_another_set_gives_up_the_one_before(tmp_path):
    cache, other = Cache(tmp_path, budget=1500), Cache(tmp_path, budget=1500)
    unused_since(make(cache, "one", bytes(1000)), 1000)
    other.hold(["one"])
    assert cache.prune() == 0
    other.hold(["two"])
    make(cache, "two", bytes(1000))
    assert keys(cache) == {"two"}
    other.close()


MAKE_AND_DIE = """
import os, sys
from pathlib import Path
from monailabel_xnat.images.cache import Cache
cache = Cache(Path(sys.argv[1]))
with cache.lock("one"), cache.making("one") as part:
    (part / "half").write_bytes(b"half")
    print("made", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_nothing_that_looks_whole(cache):
    died = subprocess.run([sys.executable, "-c", MAKE_AND_DIE, str(cache.folder)], capture_output=True, text=True)
    assert (died.stdout.strip(), died.returncode) == ("made", -signal.SIGKILL)
    assert cache.entries() == cache.find("one", "nii") == []
    assert list(cache.folder.glob("one/.part/half"))
    make(cache, "one")
    assert not list(cache.folder.glob("one/.part"))


def test_prune_clears_what_killed_processes_left(cache):
    subprocess.run([sys.executable, "-c", MAKE_AND_DIE, str(cache.folder)], capture_output=True)
    whole = make(cache, "two")
    (cache.folder / "two" / "orphan.nii").write_bytes(b"no record")
    assert cache.prune() == len(b"half") + len(b"no record")
    assert not (cache.folder / "one").exists()
    assert cache.entries() == [whole]


def test_prune_leaves_alone_what_is_being_made(cache):
    with cache.lock("one"), cache.making("one") as part:
        (part / "half").write_bytes(b"half")
        threaded = threading.Thread(target=cache.prune)
        threaded.start()
        threaded.join()
        assert (part / "half").exists()


def count_up(folder: str, path: str, times: int) -> None:
    cache = Cache(Path(folder))
    for _ in range(times):
        with cache.lock("one"):
            number = int(Path(path).read_text())
            time.sleep(0.001)
            Path(path).write_text(str(number + 1))


@pytest.mark.slow
def test_the_lock_holds_between_threads_and_processes(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "images"), str(counter), 10)
    workers = [context.Process(target=count_up, args=arguments) for _ in range(2)]
    workers += [threading.Thread(target=count_up, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.read_text() == "50"


def test_a_full_disk_names_the_folder_and_what_was_needed(cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5_000_000})())
    with pytest.raises(
        CacheError, match=r"no space left for images in .*images, at least 106\.0 MB needed.*cache_path"
    ):
        make_half(cache, AssertionError("there is no point in starting"), need=106_000_000)
    assert list(cache.folder.iterdir()) == [cache.folder / ".locks"]


def test_a_disk_smaller_than_the_budget_makes_room_of_what_was_used_longest_ago(cache, monkeypatch):
    unused_since(make(cache, "used lately", bytes(1000)), 10)
    unused_since(make(cache, "used long ago", bytes(1000)), 1000)
    usage = type("Usage", (), {"free": 1200})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with cache.lock("new"), cache.making("new", need=1000):
        assert keys(cache) == {"used lately"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_nothing_half_written(cache, number):
    with pytest.raises(CacheError, match="no space left"):
        make_half(cache, OSError(number, os.strerror(number)), need=10)
    assert not (cache.folder / "one").exists()


def test_other_failures_while_making_are_not_blamed_on_the_cache(cache):
    with pytest.raises(FileNotFoundError):
        make_half(cache, FileNotFoundError("elsewhere"))


def test_a_folder_that_cannot_be_made_names_the_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"cannot make the image cache .*cache_path"):
        Cache(tmp_path / "file" / "images")


def test_a_replaced_entry_stays_for_a_while(cache):
    old = make(cache, "one", b"old", mark="a")
    make(cache, "one", b"new", mark="b")
    assert old.path.exists()
    unused_since(old, 2 * 3600)
    make(cache, "one", b"newest", mark="c")
    assert not old.path.exists()
    assert {entry.fingerprint for entry in cache.find("one", "nii")} == {"b", "c"}


def test_an_image_in_a_mounted_archive_is_linked_and_left_alone(cache, tmp_path):
    mounted = tmp_path / "mounted.nii"
    mounted.write_bytes(b"theirs")
    mounted.chmod(0o644)
    with cache.lock("one"), cache.making("one") as part:
        (part / "link").symlink_to(mounted)
        entry = cache.put(
            part / "link", CachedImage(cache.folder / "one" / "one_a.nii", "nii", "one", "a", "now", 0, "")
        )
    assert (entry.size, entry.path.read_bytes(), cache.verify()) == (0, b"theirs", [])
    cache.remove(entry)
    assert stat.S_IMODE(mounted.stat().st_mode) == 0o644
    assert mounted.read_bytes() == b"theirs"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_is_not_stuck_on_a_lock_of_its_parent(cache):
    with cache.lock("one"):
        child = os.fork()
        if child == 0:
            with cache.lock("two"):
                os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_images_of_all_servers_share_one_budget(tmp_path):
    other = Cache(tmp_path / "one-server" / "images", budget=2500, beside=tmp_path)
    cache = Cache(tmp_path / "another-server" / "images", budget=2500, beside=tmp_path)
    unused_since(make(other, "old", bytes(1000)), 500)
    unused_since(make(other, "older", bytes(1000)), 900)
    make(cache, "new", bytes(1000))
    assert (keys(other), keys(cache)) == ({"old"}, {"new"})
    assert cache.size_of_all() == other.size_of_all() == 2000
    assert Cache(cache.folder).size_of_all() == 1000


def test_images_of_another_server_that_a_process_holds_are_not_evicted(tmp_path):
    other = Cache(tmp_path / "one-server" / "images", beside=tmp_path)
    unused_since(make(other, "held", bytes(1000)), 900)
    other.hold(["held"])
    cache = Cache(tmp_path / "another-server" / "images", budget=1500, beside=tmp_path)
    make(cache, "new", bytes(1000))
    assert keys(other) == {"held"}
    other.close()
    cache.evict()
    assert keys(other) == set()


@pytest.mark.skipif(os.name == "nt", reason="modes of folders")
def test_the_folder_of_a_server_that_others_may_write_to_is_left_alone(tmp_path):
    other = Cache(tmp_path / "one-server" / "images", beside=tmp_path)
    unused_since(make(other, "theirs", bytes(1000)), 900)
    other.folder.chmod(0o777)
    make(Cache(tmp_path / "another-server" / "images", budget=1500, beside=tmp_path), "new", bytes(1000))
    assert keys(other) == {"theirs"}


def test_a_server_that_gave_no_image_leaves_no_folder(tmp_path):
    cache = Cache(tmp_path / "base" / "server" / "images", budget=1, beside=tmp_path / "base")
    assert (cache.find("one", "nii"), cache.entries(), cache.evict(), cache.prune()) == ([], [], 0, 0)
    assert not cache.may_hold("one")
    cache.close()
    assert list(tmp_path.iterdir()) == []
