"""Work done elsewhere: on a thread that is started when needed, or by an executor; and locks in forked children."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from importlib import import_module
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Lock = TypeVar("Lock")

# How the attributes with locks are made anew in a forked child, by the objects that have them.
_renewed: weakref.WeakKeyDictionary[object, dict[str, Callable[[], object]]] = weakref.WeakKeyDictionary()


def renewed_in_children(owner: object, attribute: str, make: Callable[[], Lock]) -> Lock:
    """Return a new lock for an attribute of an object, which gets another one in each forked child.

    A thread that exists only in the parent may hold the old one: then nobody would ever release it in the child.

    Parameters
    ----------
    owner : object
        The object, or the module, that has the attribute.
    attribute : str
        Its name.
    make : callable
        Makes the lock, event or condition: ``threading.Lock``.
    """
    _renewed.setdefault(owner, {})[attribute] = make
    return make()


def _renew() -> None:
    for owner, attributes in list(_renewed.items()):
        for attribute, make in attributes.items():
            setattr(owner, attribute, make())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
    # A lock of the standard library, which it does not renew: it is held while a time is read from a text.
    renewed_in_children(import_module("_strptime"), "_cache_lock", threading.Lock)


class Background:
    """A daemon thread that is started when it is needed, and started again if it has ended.

    After a fork the child process has this object, but not the thread. The next :meth:`start` there starts one.

    Parameters
    ----------
    name : str
        Name of the thread, as debuggers and stack dumps show it.
    work : callable
        What the thread does. It returns when nothing is left to do.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether the thread runs in this process."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> bool:
        """Start the thread unless it is running. The caller must hold the lock that guards the queue of the work.

        Returns
        -------
        bool
            Whether it is running now. Python starts no thread in a process that is ending: then it is False.
        """
        if self.is_running:
            return True
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def leave(self) -> None:
        """Count the thread as ended, before it returns.

        The work calls this once its queue is empty, while it holds the lock of the queue. Anything that is queued
        afterwards starts a new thread. Without this call it would wait for a thread that no longer looks at the queue.
        """
        self._thread = None

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the work is done, at most ``timeout`` seconds (None: no limit), and return whether it is done."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(timeout)
        return not self.is_running


def begun(work: Callable[[], Result]) -> Callable[[], Result]:
    """Begin some work in another thread, and return a function that waits for its result, or raises its error.

    Python starts no thread in a process that is ending: there, that function does the work itself.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="xnat-begun")
    try:
        return pool.submit(work).result
    except RuntimeError:
        return work
    finally:
        pool.shutdown(wait=False)


class Done(NamedTuple):
    """What came of one piece of work: its result, or why there is none."""

    result: object
    error: BaseException | None

    @property
    def reason(self) -> str:
        """Why there is no result, in words; empty if there is one."""
        return "" if self.error is None else str(self.error) or type(self.error).__name__


def completed(executor: Executor, task: Callable[[Item], object], items: Iterable[Item]) -> Iterator[tuple[Item, Done]]:
    """Do a task for each item, and yield what came of each, in the order in which they are done.

    Parameters
    ----------
    executor : Executor
        Does the work. A Client of Dask is asked for its executor. It is not shut down.
    task : callable
        Called with an item. Other processes and machines get it pickled.
    items : iterable
        What it is done for. What was not begun is taken back where the caller stops to listen.
    """
    get_executor = getattr(executor, "get_executor", None)  # a Client of Dask gives futures of its own
    pool: Executor = get_executor() if get_executor else executor
    futures: dict[Future[object], Item] = {}
    try:
        for item in items:
            try:
                futures[pool.submit(task, item)] = item
            except RuntimeError as error:  # it was shut down, or its workers have died
                yield item, Done(None, error)
        for future in as_completed(futures):
            failure = CancelledError("it was cancelled") if future.cancelled() else future.exception()
            yield futures[future], Done(None if failure else future.result(), failure)
    finally:
        for future in futures:
            future.cancel()
