"""Work that is given to an executor of the standard library, or to a Client of Dask, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, as_completed
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


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
