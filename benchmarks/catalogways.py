"""The ways to know what is in a project that are measured. catalog.py runs this as a process of its own.

A way is a generator of steps: each has a name and a function that is timed. Between two steps, it prints what the one
before took, as a line of JSON, and waits for a line on standard input, so that the server's log can be read.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from served import EMPTY_PROJECT, PROJECT
from ways import Timed, memory_of, processor_time

Steps = Iterator[tuple[str, Timed]]

START = "start, list_images"
LIST = "list_images again"
STATUS = "status"
LABELED = "get_labeled_images"
UNLABELED = "get_unlabeled_images"
INFO = "get_image_info"
FIRST_SAMPLE = "next sample, first"
SAMPLE = "next sample"
REFRESH = "refresh"
EMPTY = "start, empty project"
HELD_MEMORY = "memory held"
FLAT_MEMORY = "memory after 10000 calls"
_CALLS = 10_000


@dataclass(frozen=True)
class Given:
    """What a way needs to know; ``listing`` is the address of the listing that ours asks for."""

    url: str
    user: str
    password: str
    session: str
    work: str
    listing: str


def ours(given: Given) -> Steps:
    opened: list[Any] = []

    def start() -> None:
        opened.append(_ours(given, PROJECT))
        opened[0].list_images()

    yield START, start
    (datastore,) = opened
    image = datastore.list_images()[0]
    yield LIST, datastore.list_images
    yield STATUS, datastore.status
    yield LABELED, datastore.get_labeled_images
    yield UNLABELED, datastore.get_unlabeled_images
    yield INFO, lambda: datastore.get_image_info(image)
    yield REFRESH, datastore.refresh
    yield EMPTY, lambda: opened.append(_ours(given, EMPTY_PROJECT))
    yield FIRST_SAMPLE, lambda: _next_sample_of_app(datastore)
    yield SAMPLE, lambda: _next_sample_of_app(datastore)
    for datastore in opened:
        datastore.close()


def built_in(given: Given) -> Steps:
    from monailabel.datastore.xnat import XNATDatastore

    opened: list[Any] = []

    def start() -> None:
        opened.append(XNATDatastore(given.url, given.user, given.password, PROJECT, "", given.work))
        opened[0].list_images()

    yield START, start
    (datastore,) = opened
    yield LIST, datastore.list_images
    yield STATUS, datastore.status
    yield FIRST_SAMPLE, lambda: _next_sample(datastore)


def object_walk(given: Given) -> Steps:
    """Every scan by its object, as xnatpy's documentation shows; a connection parses XNAT's schema first."""
    import xnat

    def start() -> None:
        with xnat.connect(given.url, user=given.user, password=given.password) as connection:
            project = connection.projects[PROJECT]
            for experiment in project.experiments.values():
                subject = experiment.subject_id
                for scan in experiment.scans.values():
                    "/".join((project.id, subject, experiment.id, scan.id))

    yield START, start


def bare_listing(given: Given) -> Steps:
    """The same listing as ours asks for, by one GET."""
    import requests

    def start() -> None:
        answer = requests.get(given.url + given.listing, auth=(given.user, given.password), timeout=600)
        json.loads(answer.content)

    yield START, start


def traced_memory(given: Given) -> Steps:
    """What a datastore holds, in bytes that Python knows of."""
    tracemalloc.start()
    return _memory(given, lambda: tracemalloc.get_traced_memory()[0])


def resident_memory(given: Given) -> Steps:
    """What a datastore holds, in bytes that the system has given to the process."""
    return _memory(given, lambda: memory_of("VmRSS") * 2**20)


def _memory(given: Given, taken: Callable[[], float]) -> Steps:
    """Measure how memory grows with a project, and with thousands of calls; nothing is timed."""
    _ours(given, EMPTY_PROJECT).close()  # what modules take when first used is not the project's
    gc.collect()
    before = taken()
    datastore = _ours(given, PROJECT)
    gc.collect()
    _say(HELD_MEMORY, {"bytes": taken() - before})
    images = datastore.list_images()
    _call_all(datastore, images, _CALLS // 10)
    gc.collect()
    before = taken()
    _call_all(datastore, images, _CALLS)
    gc.collect()
    _say(FLAT_MEMORY, {"bytes": taken() - before})
    datastore.close()
    yield from ()


WAYS: dict[str, Callable[[Given], Steps]] = {
    "ours": ours,
    "bare GET + json.loads": bare_listing,
    "built-in": built_in,
    "xnatpy objects": object_walk,
}
MEMORY_WAYS: dict[str, Callable[[Given], Steps]] = {"of Python": traced_memory, "resident": resident_memory}


def _ours(given: Given, project: str) -> Any:
    from monailabel_xnat import XNATDatastore

    cache = Path(given.work, project)
    return XNATDatastore(given.url, given.user, given.password, project, cache_path=cache, environ={}, max_age=3600)


def _next_sample(datastore: Any) -> None:
    """What MONAI Label's server does for a client that wants the next image."""
    from monailabel.tasks.activelearning.random import Random

    _hand_out(datastore, Random()({"strategy": "random"}, datastore)["id"])


def _next_sample_of_app(datastore: Any) -> None:
    """The same in an app with the mixin, as the launcher starts it: the image is claimed as well."""
    from monailabel_xnat.app.strategies import choose_at_random

    request = {"strategy": "random"}
    _hand_out(datastore, datastore.hand_out(lambda: choose_at_random(request, datastore), "bench")["id"])


def _hand_out(datastore: Any, chosen: str) -> None:
    strategy = datastore.get_image_info(chosen).get("strategy", {})
    strategy["random"] = {"ts": int(time.time()), "client_id": "bench"}
    datastore.update_image_info(chosen, {"strategy": strategy})


def _call_all(datastore: Any, images: list[str], calls: int) -> None:
    for number in range(calls // 4):
        datastore.list_images()
        datastore.status()
        datastore.get_image_info(images[number % len(images)])
        datastore.get_unlabeled_images()
        if number % (calls // 12) == 0:
            datastore.refresh()


def _measure(steps: Steps) -> None:
    for name, timed in steps:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before, cpu, started = memory_of("VmRSS"), processor_time(), time.perf_counter()
        timed()
        wall = time.perf_counter() - started
        _say(name, {"wall": wall, "cpu": processor_time() - cpu, "peak": memory_of("VmHWM") - before})


def _say(name: str, figures: dict[str, float]) -> None:
    print(json.dumps({"step": name, **figures}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import requests  # noqa: F401
    import xnat  # noqa: F401

    import monailabel_xnat.datastore  # noqa: F401

    _measure({**WAYS, **MEMORY_WAYS}[sys.argv[1]](Given(**json.loads(sys.argv[2]))))
