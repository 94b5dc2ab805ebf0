"""Faults, operations of a datastore, and one cell of the table of both.

A cell is one operation that meets one fault on the sandbox.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.errors import LabelNotUploadedError, UnknownImageError, XNATDatastoreError
from monailabel_xnat.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "labels"))

from label_archive import AFFINE, SHAPE

VOXELS = np.arange(210, dtype=np.int16).reshape(SHAPE)
LABEL = (VOXELS % 3).astype(np.uint8)
TAG = "final"
# Even a busy machine answers within this time. A slower answer is the fault of a cell.
PATIENCE, ANSWER_TAKES = 1.0, 2.5
MAINTENANCE = "<!DOCTYPE html><html><body><h1>We will be back soon</h1></body></html>"


class Fault(NamedTuple):
    """A failure of every request, or of the first one only."""

    name: str
    what: Mapping[str, Any] = {}
    is_slow: bool = False

    @property
    def rests(self) -> bool:
        """Whether XNAT asks for a pause that is longer than any caller waits."""
        return self.what.get("retry_after") == "600"


def _once(name: str, **what: Any) -> Fault:
    return Fault(name, {**what, "times": 1})


def _always(name: str, *, is_slow: bool = False, **what: Any) -> Fault:
    return Fault(name, {**what, "times": None}, is_slow)


FULL_DISK = Fault("the disk is full")
FAULTS = (
    _once("502 once", status=502),
    _once("503 once, Retry-After: 2", status=503, retry_after="2"),
    _once("429 once", status=429),
    _once("the login has ended", expire=True),
    _once("login page with 200, once", login_page=True),
    _once("the connection is cut, once", drop_after=0),
    _once("500 once", status=500),
    _always("500", status=500),
    _always("502", status=502),
    _always("503, Retry-After: 600", status=503, retry_after="600"),
    _always("504", status=504),
    _always("401", status=401),
    _always("403", status=403),
    _always("404", status=404),
    _always("409", status=409),
    _always("413", status=413),
    _always("422", status=422),
    _always("login page with 200", login_page=True),
    _always("maintenance page with 200", page=MAINTENANCE),
    _always("the connection is cut", drop_after=0),
    _always("the body is cut short", drop_after=7),
    _always("the body ends too early", truncate=9),
    _always("half a JSON document", json='{"ResultSet": {"Result": [{"ID": "x"'),
    _always("JSON of another shape", json='{"items": "none"}'),
    _always("JSON that is a list", json="[1, 2]"),
    _always("the body stalls", stall=ANSWER_TAKES, is_slow=True),
    _always("no answer in time", delay=ANSWER_TAKES, is_slow=True),
    FULL_DISK,
)


@dataclass
class World:
    """A project with an image, and a datastore on it."""

    sandbox: Sandbox
    project: str
    folder: Path
    timeout: float = 30.0
    opened: list[XNATDatastore] = field(default_factory=list)

    @property
    def image(self) -> str:
        return next(image for image in self.datastore.list_images() if image.endswith("/1"))

    @property
    def datastore(self) -> XNATDatastore:
        return self.opened[-1]

    def open(self, cache: str = "mine") -> XNATDatastore:
        """Open a datastore. With the same cache, it acts as the next process after the one before."""
        self.opened.append(self.apart(cache))
        return self.datastore

    def apart(self, cache: str) -> XNATDatastore:
        """Open a datastore of another user."""
        login = {"username": self.sandbox.username, "password": self.sandbox.password}
        settings = {"cache_path": self.folder / cache, "timeout": self.timeout, "max_age": 3600.0, "environ": {}}
        return XNATDatastore(self.sandbox.url, project=self.project, roi_write="", prefetch=0, **login, **settings)

    @property
    def drawn(self) -> Path:
        return self.folder / "drawn.nii.gz"

    @property
    def another(self) -> Path:
        return self.folder / "another.nii.gz"

    def draw(self) -> None:
        """Make a label file and an image file."""
        nibabel.save(nibabel.Nifti1Image(LABEL, AFFINE), self.drawn)
        nibabel.save(nibabel.Nifti1Image(VOXELS + 1, AFFINE), self.another)

    def save(self) -> str:
        return self.datastore.save_label(self.image, self.drawn, TAG, {"by": "me"})

    def saved_by_another(self) -> None:
        with self.apart("other") as other:
            image = next(image for image in other.list_images() if image.endswith("/1"))
            other.save_label(image, self.drawn, TAG, {"by": "other"})

    def close(self) -> None:
        for datastore in self.opened:
            datastore.close()


def _nothing(world: World) -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """An operation of a datastore: the preparation, the call, and the check of its result."""

    name: str
    act: Callable[[World], Any]
    is_right: Callable[[World, Any], bool]
    before: Callable[[World], object] = _nothing
    # This must hold once XNAT works again and the operation was repeated, or the next process was started.
    is_whole: Callable[[World], bool] = lambda world: True
    is_repeated: bool = True


def _voxels(path: str) -> Any:
    return np.asarray(nibabel.load(path).dataobj) if path else None


def _is_image(world: World, path: str) -> bool:
    return np.array_equal(_voxels(path), VOXELS)


def _is_label(world: World, path: str) -> bool:
    return np.array_equal(_voxels(path), LABEL)


def _open(world: World) -> list[str]:
    return world.open("new").list_images()


def _known(world: World) -> Any:
    datastore = world.datastore
    datastore.get_unlabeled_images(), datastore.json()
    return datastore.status()["total"], len(datastore.list_images()), datastore.get_image_info(world.image)["scan"]


def _add(world: World) -> str:
    return world.datastore.add_image(None, world.another, {})


def _added(world: World) -> list[str]:
    with world.apart("fresh") as fresh:
        return [image for image in fresh.list_images() if image.split("/")[2] != world.image.split("/")[2]]


def _is_added_once(world: World) -> bool:
    with world.apart("fresh") as fresh:
        return [np.array_equal(_voxels(fresh.get_image_uri(image)), VOXELS + 1) for image in _added(world)] == [True]


def _is_in_xnat_once(world: World) -> bool:
    with world.apart("fresh") as fresh:
        versions = fresh.label_history(world.image, TAG)
        return len(versions) == 1 and _is_label(world, fresh.get_label_uri(world.image, TAG))


def _label_info(world: World) -> dict[str, Any]:
    with world.apart("fresh") as fresh:
        return fresh.get_label_info(world.image, TAG)


def _update_image_info(world: World) -> None:
    world.datastore.update_image_info(world.image, {"note": "mine"})
    world.datastore._infos.flush()  # the background thread does this a moment later


def _image_info(world: World) -> dict[str, Any]:
    with world.apart("fresh") as fresh:
        return fresh.get_image_info(world.image)


def _training_set(world: World) -> str:
    cases = world.datastore.datalist()
    return cases[0]["label"] if cases else ""


def _warm(world: World) -> None:
    world.datastore.get_image_uri(world.image)


def _warm_label(world: World) -> None:
    world.save()
    world.datastore.get_label_uri(world.image, TAG)


OPERATIONS = (
    Operation("open, list images", _open, lambda world, found: len(found) == 2),
    Operation("list, status, json, image info", _known, lambda world, found: found == (2, 2, "1")),
    Operation("refresh", lambda world: world.datastore.refresh(), lambda world, _: len(world.datastore._catalog) == 2),
    Operation("get image, first time", lambda world: world.datastore.get_image_uri(world.image), _is_image),
    Operation("get image again", lambda world: world.datastore.get_image_uri(world.image), _is_image, _warm),
    Operation(
        "save label",
        lambda world: world.save(),
        lambda world, label: label == world.image,
        _warm,
        _is_in_xnat_once,
        is_repeated=False,
    ),
    Operation(
        "save label, image not fetched",
        lambda world: world.save(),
        lambda world, label: label == world.image,
        _nothing,
        _is_in_xnat_once,
        is_repeated=False,
    ),
    Operation(
        "get label of another, first time",
        lambda world: world.datastore.get_label_uri(world.image, TAG),
        _is_label,
        lambda world: (world.saved_by_another(), world.datastore.refresh()),
    ),
    Operation("get label again", lambda world: world.datastore.get_label_uri(world.image, TAG), _is_label, _warm_label),
    Operation(
        "label info and history",
        lambda world: (
            world.datastore.get_label_info(world.image, TAG)["by"],
            len(world.datastore.label_history(world.image, TAG)),
        ),
        lambda world, found: found == ("other", 1),
        lambda world: (world.saved_by_another(), world.datastore.refresh()),
    ),
    Operation(
        "update label info",
        lambda world: world.datastore.update_label_info(world.image, TAG, {"note": "mine"}),
        lambda world, _: True,
        lambda world: world.save(),
        lambda world: _label_info(world).items() >= {"by": "me", "note": "mine"}.items(),
    ),
    Operation(
        "remove label",
        lambda world: world.datastore.remove_label(world.image, TAG),
        lambda world, _: True,
        lambda world: world.save(),
        lambda world: _label_info(world) == {},
    ),
    Operation(
        "update image info",
        _update_image_info,
        lambda world, _: world.datastore.get_image_info(world.image)["note"] == "mine",
        _nothing,
        lambda world: _image_info(world).get("note") == "mine",
        is_repeated=False,
    ),
    Operation("add image", _add, lambda world, image: bool(image), _nothing, _is_added_once),
    Operation(
        "training set",
        _training_set,
        lambda world, found: _is_label(world, found) or "left_out" in world.datastore.status(),
        lambda world: (world.saved_by_another(), world.datastore.refresh()),
    ),
    Operation("close", lambda world: world.datastore.close(), lambda world, _: True, lambda world: world.save()),
)

_full: list[str] = []
_refused: list[str] = []


def _refuse_when_full(event: str, args: tuple[Any, ...]) -> None:
    if not _full or event not in ("open", "os.mkdir"):
        return
    path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes)) else ""
    is_new = event == "os.mkdir" or args[2] & (os.O_WRONLY | os.O_RDWR)
    if is_new and path.startswith(_full[0]) and not path.endswith(".lock"):
        _refused.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


sys.addaudithook(_refuse_when_full)


@contextmanager
def _happening(fault: Fault, world: World) -> Iterator[Callable[[], bool]]:
    """Make a fault happen within the block. The object that is yielded says whether a request met it."""
    faults, log = world.sandbox.faults, world.sandbox.requests
    if fault is FULL_DISK:
        _refused.clear()
        _full.append(str(world.folder))
        try:
            yield lambda: bool(_refused)
        finally:
            _full.clear()
        return
    before, began = len(log), time.monotonic()
    set_fault = faults.add(**fault.what)

    def was_met() -> bool:
        if set_fault.times is not None:
            return set_fault.times == 0
        # The sandbox logs a request that waits only later.
        return len(log) > before or (fault.is_slow and time.monotonic() - began > PATIENCE)

    try:
        yield was_met
    finally:
        faults.clear()


def outcome(operation: Operation, fault: Fault, world: World) -> str:
    """Do an operation while a fault happens, return the outcome, and check that nothing is lost afterwards.

    Returns
    -------
    str
        ``right`` (after a repetition, or without the failed part), ``memory`` (no request that could fail), ``kept``
        (safe on this disk, sent later), ``kept, unassigned`` (a person must name the image), ``left out`` (named in
        ``status()``), or the name of the error.
    """
    world.open()
    operation.before(world)
    with _happening(fault, world) as was_met:
        try:
            result = operation.act(world)
            assert operation.is_right(world, result), f"{operation.name}, {fault.name}: wrong without a word: {result}"
            status = world.datastore.status() if world.datastore._is_open else {}
            if "left_out" in status or "infos_waiting" in status:
                what = "left out" if "left_out" in status else "kept"
            else:
                what = "right" if was_met() else "memory"
        except (LabelNotUploadedError, UnknownImageError) as error:
            _require_readable(error)
            what = "kept" if isinstance(error, LabelNotUploadedError) else "kept, unassigned"
        except XNATDatastoreError as error:
            _require_readable(error)
            what = type(error).__name__
    _require_nothing_lost(operation, fault, world, what)
    return what


def _require_nothing_lost(operation: Operation, fault: Fault, world: World, what: str) -> None:
    cell = f"{operation.name}, {fault.name}: {what}"
    is_accepted = what.startswith("kept") or what in ("right", "memory")
    if fault.rests or operation.name == "close" or (what.startswith("kept") and not operation.is_repeated):
        world.close()
        world.open()  # the next process
    if operation.name != "close" and (operation.is_repeated or not is_accepted):
        again = operation.act(world)
        assert operation.is_right(world, again), f"{cell}; afterwards {again}"
        assert "left_out" not in world.datastore.status(), cell
    _wait_until_sent(world)
    assert operation.is_whole(world), f"{cell}; afterwards it is not whole"


def _wait_until_sent(world: World) -> None:
    ends = time.monotonic() + 60
    while {"outbox", "infos_waiting"} & (status := world.datastore.status()).keys():
        for entry in status.get("outbox_waits", ()):
            if entry["state"] == "unassigned":
                login = ["--username", world.sandbox.username, "--cache-path", str(world.folder / "mine")]
                main(["outbox", "assign", entry["folder"], world.image, "--studies", world.sandbox.url, *login])
        assert time.monotonic() < ends, status
        time.sleep(0.02)


def _require_readable(error: XNATDatastoreError) -> None:
    text = str(error)
    assert error.message, repr(error)
    assert error.hint, text
    assert len(text) < 900, text
    assert "Traceback" not in text, text
    assert "<html" not in text.lower(), text
