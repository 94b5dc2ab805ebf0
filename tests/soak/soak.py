"""A bad day in a few minutes: several processes save and read while XNAT fails and restarts, and they are killed.

Run it with ``make soak SECONDS=600``. There are two machines (with folders of their own), with two processes of two
threads each, which save labels and infos, and read. One more process is never killed, and its memory and open files are
checked. The seed chooses what happens to XNAT: the same seed makes the same failures in the same order, but not at the
same moments. At the end, every accepted label must be in XNAT once, with its bytes, and nothing else.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main as command
from monailabel_xnat.errors import LabelNotUploadedError, UnknownImageError, XNATDatastoreError
from monailabel_xnat.sandbox import Sandbox

PROJECT, SCANS, TAGS = "SOAK", 12, ("final", "original", "draft")
SHAPE, AFFINE = (7, 6, 5), np.diag([-2.0, -2.0, 3.0, 1.0])
MACHINES, PROCESSES, THREADS = 2, 2, 2
# A younger process is still loading what it needs.
_SETTLED = 120.0
PASSWORD = "soak-password-1"
# What XNAT does, and the greatest number of requests in a row to which it does it.
FAILURES: tuple[tuple[dict[str, Any], int], ...] = (
    ({"status": 500}, 3),
    ({"status": 502}, 6),
    ({"status": 503, "retry_after": "1"}, 3),
    ({"status": 504}, 2),
    ({"status": 429, "retry_after": "1"}, 3),
    ({"status": 401}, 1),
    ({"status": 403, "method": "PUT"}, 2),
    ({"status": 404}, 1),
    ({"status": 409, "method": "PUT"}, 2),
    ({"status": 413, "method": "PUT"}, 1),
    ({"status": 422, "method": "PUT"}, 1),
    ({"login_page": True}, 1),
    ({"page": "<html><body>Back soon</body></html>"}, 3),
    ({"drop_after": 0}, 5),
    ({"drop_after": 40}, 5),
    ({"truncate": 9, "method": "GET"}, 3),
    ({"json": '{"ResultSet": {"Result": [{'}, 2),
    ({"json": "[1, 2]"}, 2),
    ({"lose": True, "method": "PUT", "path": "/files/"}, 3),
    ({"stale": True, "method": "PUT", "path": "/files/"}, 3),
    ({"expire": True}, 1),
    ({"delay": 0.3}, 4),
)


def image_voxels(scan: int) -> Any:
    return np.arange(210, dtype=np.int16).reshape(SHAPE) + scan


def label_voxels(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8)


def fill(sandbox: Sandbox) -> None:
    """Make the project, with one session and its scans."""
    with requests.Session() as admin:
        admin.auth = (sandbox.username, PASSWORD)
        project = f"{sandbox.url}/data/projects/{PROJECT}"
        session = f"{project}/subjects/s1/experiments/e1"
        for path in (project, f"{project}/subjects/s1", f"{session}?xsiType=xnat:ctSessionData&date=2026-01-01"):
            admin.put(path).raise_for_status()
        for scan in range(SCANS):
            kind = "xsiType=xnat:ctScanData&xnat:ctScanData/type=CT"
            admin.put(f"{session}/scans/{scan}?{kind}").raise_for_status()
            file = f"{session}/scans/{scan}/resources/NIFTI/files/image.nii"
            content = nibabel.Nifti1Image(image_voxels(scan), AFFINE).to_bytes()
            headers = {"Content-Type": "application/octet-stream"}
            admin.put(file, data=content, headers=headers).raise_for_status()


def open_datastore(url: str, folder: Path) -> XNATDatastore:
    login = {"username": "admin", "password": PASSWORD, "environ": {}}
    settings = {"max_age": 2.0, "timeout": 20.0, "roi_write": "", "prefetch": 0}
    return XNATDatastore(url, project=PROJECT, cache_path=folder, **login, **settings)


class Worker:
    """The work of one process until it is told to end, or is killed. Each step is recorded before and after.

    Lines of the journal: ``begin N``, ``saved N``, ``refused N``, ``info MACHINE N``, ``read``, ``error KIND``, and
    ``bug TEXT`` for an error that must never happen.
    """

    def __init__(self, url: str, folder: Path, machine: int, life: int, seed: int) -> None:
        self._folder = folder
        self._machine = machine
        self._life = life
        self._seed = seed
        self._url = url
        self._journal = os.open(folder / "journal.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def run(self, stop: Any) -> None:
        while not stop.is_set():
            try:
                self._datastore = open_datastore(self._url, self._folder)
                break
            except XNATDatastoreError as error:
                self._note("error", type(error).__name__)
                time.sleep(0.2)
        else:
            return
        threads = [threading.Thread(target=self._work, args=(number, stop)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._datastore.close()

    def _note(self, *words: object) -> None:
        os.write(self._journal, (" ".join(map(str, words)) + "\n").encode())

    def _work(self, thread: int, stop: Any) -> None:
        chosen = random.Random(f"{self._seed} {self._life} {thread}")
        first = (self._life * THREADS + thread) * 10_000
        for number in range(first, first + 10_000):
            if stop.is_set():
                return
            try:
                images = self._datastore.list_images()
                if not images:  # XNAT answered twice that the project does not exist
                    self._note("error", "NoImages")
                    time.sleep(0.5)
                    continue
                if len(images) != SCANS:
                    self._note("bug", f"{len(images)} images are listed")
                image = f"{images[0].rpartition('/')[0]}/{chosen.randrange(SCANS)}"
                what = chosen.choices((self._save, self._read_label, self._read_image, self._look), (4, 3, 2, 1))[0]
                what(image, chosen, number)
            except XNATDatastoreError as error:
                self._note("error", type(error).__name__)
                time.sleep(0.05)
            except Exception:  # noqa: BLE001 - whatever it is, it must not happen
                self._note("bug", traceback.format_exc().replace("\n", " | "))
                time.sleep(0.5)

    def _save(self, image: str, chosen: random.Random, number: int) -> None:
        path = self._folder / f"drawn-{self._life}-{threading.get_ident()}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(label_voxels(number), AFFINE), path)
        self._note("begin", number)
        try:
            self._datastore.save_label(image, path, chosen.choice(TAGS), {"number": number})
        except (LabelNotUploadedError, UnknownImageError) as error:  # both errors say that the label is kept here
            self._note("kept" if "outbox" in str(error) else "bug", number, type(error).__name__)
        except XNATDatastoreError:
            self._note("refused", number)
            raise
        self._note("saved", number)

    def _read_label(self, image: str, chosen: random.Random, number: int) -> None:
        tags = self._datastore.get_labels_by_image_id(image)
        if not tags:
            return
        tag = chosen.choice(sorted(tags))
        history = self._datastore.label_history(image, tag)[:5]
        if not history:  # its resource has just been made, by another process
            return
        version = chosen.choice(history)["version"]
        info = self._datastore.get_label_info(f"{image}@{version}", tag)
        uri = self._datastore.get_label_uri(f"{image}@{version}", tag)
        # A label may get another name as it leaves the outbox, and is stored a moment before its description.
        is_told = uri and "number" in info
        if is_told and not np.array_equal(np.asarray(nibabel.load(uri).dataobj), label_voxels(info["number"])):
            self._note("bug", f"label {info['number']} has other voxels")
        self._note("read")

    def _read_image(self, image: str, chosen: random.Random, number: int) -> None:
        scan = int(image.rpartition("/")[2])
        uri = self._datastore.get_image_uri(image)
        if not np.array_equal(np.asarray(nibabel.load(uri).dataobj), image_voxels(scan)):
            self._note("bug", f"image {scan} has other voxels")
        self._note("read")

    def _look(self, image: str, chosen: random.Random, number: int) -> None:
        mine = f"{image.rpartition('/')[0]}/{self._machine}"  # this test does not let two machines change one info
        self._datastore.update_image_info(mine, {f"n{number}": number})
        self._note("info", self._machine, number)
        self._datastore.status()
        self._datastore.json()
        if chosen.random() < 0.3:
            self._datastore.refresh()


def work(url: str, folder: str, machine: int, life: int, seed: int, stop: Any) -> None:
    """Run a worker. A new process starts with this function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(url, Path(folder), machine, life, seed).run(stop)


class Trouble:
    """A sandbox that fails, ends its logins and restarts, as the seed says."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chosen = random.Random(seed)
        self._port = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.sandbox = self._start()
        fill(self.sandbox)

    def _start(self) -> Sandbox:
        sandbox = Sandbox(self._folder, port=self._port, users={"admin": PASSWORD}).start()
        self._port = int(sandbox.url.rpartition(":")[2])
        return sandbox

    def one(self) -> None:
        """Make the next thing go wrong."""
        if self._chosen.random() < 0.03:
            self.sandbox.stop()
            time.sleep(self._chosen.uniform(0, 2))
            self.sandbox = self._start()
            self.counts["restarts"] += 1
            return
        what, most = self._chosen.choice(FAILURES)
        path = self._chosen.choice(("", "", "/files", "MONAILABEL_", "/scans"))
        self.sandbox.faults.add(**{"path": path, **what, "times": self._chosen.randint(1, most)})
        self.counts["failures"] += 1

    def end(self) -> None:
        self.sandbox.faults.clear()


class Soak:
    """One run."""

    def __init__(self, seconds: float, seed: int, folder: Path) -> None:
        self._seconds = seconds
        self._folder = folder
        self._chosen = random.Random(-seed)
        self._seed = seed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["monailabel_xnat.datastore", "nibabel"])
        self._stop = self._context.Event()
        self._lives = 0
        self._kills = 0
        self.samples: list[tuple[float, int, int]] = []
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "xnat").mkdir(mode=0o700)
        self._trouble = Trouble(folder / "xnat", seed)
        self._machines = [folder / f"machine{number}" for number in range(MACHINES + 1)]

    def run(self) -> list[str]:
        """Run, and return what went wrong."""
        try:
            # The last machine has the process that is never killed.
            workers = {
                (machine, number): self._life(machine) for machine in range(MACHINES) for number in range(PROCESSES)
            }
            steady = self._life(MACHINES)
            ends = time.monotonic() + self._seconds
            next_kill = time.monotonic() + 3
            while time.monotonic() < ends:
                self._trouble.one()
                self._sample(steady.pid)
                time.sleep(self._chosen.uniform(0.1, 0.8))
                if time.monotonic() > next_kill:
                    place = self._chosen.choice(sorted(workers))
                    workers[place].kill()
                    workers[place].join()
                    workers[place] = self._life(place[0])
                    self._kills += 1
                    next_kill = time.monotonic() + self._chosen.uniform(1, 4)
            self._stop.set()
            self._trouble.end()
            problems = self._ended([*workers.values(), steady])
            return problems + self._compare() + self._held()
        finally:
            self._trouble.sandbox.stop()

    def _life(self, machine: int) -> Any:
        self._lives += 1
        folder = self._machines[machine]
        folder.mkdir(mode=0o700, exist_ok=True)
        url = self._trouble.sandbox.url
        args = (url, str(folder), machine, self._lives, self._seed, self._stop)
        process = self._context.Process(target=work, args=args, daemon=True)
        process.start()
        return process

    def _ended(self, processes: list[Any]) -> list[str]:
        problems = []
        for process in processes:
            process.join(120)
            if process.is_alive():
                problems.append(f"process {process.pid} does not end")
                process.kill()
                process.join()
            elif process.exitcode != 0:
                problems.append(f"a process ended with {process.exitcode}")
        return problems

    def _sample(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return
        resident = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")), "0")
        self.samples.append((time.monotonic(), int(resident), files))

    def _lines(self, machine: Path) -> Iterator[list[str]]:
        for line in (machine / "journal.txt").read_text().splitlines():
            yield line.split()

    def _compare(self) -> list[str]:
        """Compare what was accepted with what is in XNAT."""
        problems, begun, accepted, counts = [], set(), set(), self._trouble.counts
        infos: set[tuple[int, int]] = set()
        for machine in self._machines:
            for word, *rest in self._lines(machine):
                counts[f"{word} {rest[0]}" if word == "error" else word] += 1
                if word == "begin":
                    begun.add(int(rest[0]))
                elif word == "saved":
                    accepted.add(int(rest[0]))
                elif word == "info":
                    infos.add((int(rest[0]), int(rest[1])))
                elif word == "bug":
                    problems.append(" ".join(rest))
            problems += self._deliver(machine)
        found, wrong = self._stored()
        problems += wrong
        twice = [number for number, times in found.items() if times > 1]
        for name, numbers in (
            ("accepted and lost", accepted - found.keys()),
            ("in XNAT more than once", set(twice)),
            ("in XNAT and never given", found.keys() - begun),
        ):
            if numbers:
                problems.append(f"{len(numbers)} labels are {name}: {sorted(numbers)[:20]}")
        problems += self._lost_infos(infos)
        counts.update(accepted=len(accepted), stored=len(found), lives=self._lives, kills=self._kills)
        return problems

    def _deliver(self, machine: Path) -> list[str]:
        """Send the labels that still wait on a machine, as its next process does, and return what could not be sent."""
        with closing(open_datastore(self._trouble.sandbox.url, machine)) as heir:
            ends = time.monotonic() + 60
            while {"outbox", "infos_waiting"} & (status := heir.status()).keys() and time.monotonic() < ends:
                for entry in status.get("outbox_waits", ()):
                    if entry.get("state") == "unassigned":  # XNAT answered 404; a person would assign it
                        self._assign(machine, entry)
                time.sleep(0.2)
            status = heir.status()
            left = {key: status[key] for key in ("outbox_waits", "infos_waiting", "unassigned") if key in status}
            return [f"{machine.name} still holds {left}"] if left else []

    def _assign(self, machine: Path, entry: dict[str, Any]) -> None:
        os.environ["MONAI_LABEL_XNAT_PASSWORD"] = PASSWORD
        words = ["--studies", self._trouble.sandbox.url, "--username", "admin", "--cache-path", str(machine)]
        command(["outbox", "assign", entry["folder"], entry["image"], *words])
        self._trouble.counts["assigned"] += 1

    def _stored(self) -> tuple[collections.Counter[int], list[str]]:
        """Return how often each label is in XNAT, as a new machine reads it."""
        found: collections.Counter[int] = collections.Counter()
        problems = []
        with closing(open_datastore(self._trouble.sandbox.url, self._folder / "witness")) as witness:
            for image in witness.list_images():
                for tag in witness.get_labels_by_image_id(image):
                    for version in witness.label_history(image, tag):
                        label = f"{image}@{version['version']}"
                        number = witness.get_label_info(label, tag)["number"]
                        found[number] += 1
                        voxels = np.asarray(nibabel.load(witness.get_label_uri(label, tag)).dataobj)
                        if not np.array_equal(voxels, label_voxels(number)):
                            problems.append(f"label {number} has other voxels in XNAT")
        return found, problems

    def _lost_infos(self, infos: set[tuple[int, int]]) -> list[str]:
        with closing(open_datastore(self._trouble.sandbox.url, self._folder / "witness")) as witness:
            session = witness.list_images()[0].rpartition("/")[0]
            known = {machine: witness.get_image_info(f"{session}/{machine}") for machine in range(MACHINES + 1)}
        lost = [(machine, number) for machine, number in infos if known[machine].get(f"n{number}") != number]
        return [f"{len(lost)} infos are accepted and lost: {sorted(lost)[:20]}"] if lost else []

    def _held(self) -> list[str]:
        """Compare memory and open files of the process that was never killed, late in its life, with earlier ones."""
        quarter = len(self.samples) // 4
        if quarter < 5:
            return []
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        memory = [sorted(sample[1] for sample in part)[quarter // 2] // 1024 for part in (early, late)]
        files = [sorted(sample[2] for sample in part)[quarter // 2] for part in (early, late)]
        self.held = f"memory {memory[0]} MB, then {memory[1]} MB; open files {files[0]}, then {files[1]}"
        # What is known of each label is held, a few kilobytes.
        allowed = 30 + self._trouble.counts["stored"] * 5 // 1024
        if self._seconds < _SETTLED:
            return []
        grew = [] if memory[1] - memory[0] <= allowed else [f"memory grows: {self.held}"]
        return grew + ([] if files[1] - files[0] <= 15 else [f"open files grow: {self.held}"])

    held = "not looked at"

    @property
    def counts(self) -> dict[str, int]:
        """The events so far, and how often each happened."""
        return dict(sorted(self._trouble.counts.items()))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def soak(seconds: float, seed: int) -> list[str]:
    """Run, print the figures, and return what went wrong. If something did, the folder stays."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    _say(f"soak: {seconds:g} s, seed {seed}")
    run = Soak(seconds, seed, folder)
    problems = run.run()
    _say(f"soak: {run.counts}")
    _say(f"soak: the process that was never killed: {run.held}")
    if problems:
        _say("\n".join(["soak: FAILED", *problems[:50]]))
        _say(f"soak: repeat it with: make soak SECONDS={seconds:g} SEED={seed}; what it left is in {folder}")
    else:
        shutil.rmtree(folder)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="default: one that is drawn, and printed")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if chosen.seed is None else chosen.seed
    return 1 if soak(chosen.seconds, seed) else 0


if __name__ == "__main__":
    sys.exit(main())
