"""Work on a thread of its own, started when there is some."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A daemon thread that is started when it is needed, and again where it has ended.

    After a fork the child has this object but not the thread: the next :meth:`start` there starts one.

    Parameters
    ----------
    name : str
        Name of the thread, for whoever looks at a running process.
    work : callable
        What the thread does. It returns when nothing is left to do.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether the thread is at work in this process."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> bool:
        """Start the thread unless it is running; the caller holds whatever lock guards its queue.

        Returns
        -------
        bool
            Whether it is running now. A process that is ending starts no threads.
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

        The work calls this under the lock of its queue once the queue is empty: what is queued after that starts a new
        thread, and is not left to one that will never look again.
        """
        self._thread = None

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the work is done, for at most so many seconds; return whether it is."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(timeout)
        return not self.is_running
