"""Work that is done on a thread of its own; the thread is started when there is work to do."""

from __future__ import annotations

import threading
from collections.abc import Callable


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
