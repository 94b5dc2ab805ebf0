"""A datastore as Python sees it: opened, closed, handed to another process, and shown."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeVar

from monailabel_xnat.config import Secret, Settings
from monailabel_xnat.errors import LoginError
from monailabel_xnat.facade.credentials import completed

if TYPE_CHECKING:
    from typing_extensions import Self

_reopening = threading.RLock()
Kind = TypeVar("Kind", bound="Reopening")


class Reopening(ABC):
    """What holds connections, locks and threads, and is opened anew in another process, at its first use there.

    It is pickled as its settings, without secrets: what opens it again logs in with the environment of its own
    process, or ``~/.netrc``. All that it holds stands in slots: MONAI's data loader looks through everything that it
    finds in the ``__dict__`` of a dataset, and would never come to an end in here.
    """

    __slots__ = (
        "_additions",
        "_catalog",
        "_close_at_exit",
        "_dataset",
        "_description",
        "_graph",
        "_images",
        "_infos",
        "_is_borrowed",
        "_labels",
        "_session",
        "_settings",
        "_views",
    )

    _settings: Settings
    _is_borrowed: bool

    @abstractmethod
    def _open(self, settings: Settings) -> None:
        """Make all that is held."""

    @abstractmethod
    def close(self) -> None:
        """Write what waits and log out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Open the datastore in the process that it was handed to; only what is not there is looked for here."""
        if name not in Reopening.__slots__ or name in ("_settings", "_is_borrowed", "_close_at_exit"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _reopening:
            if not self._is_open:
                self._require_own_login()
                self._open(completed(self._settings, os.environ))
        return object.__getattribute__(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        settings = replace(self._settings, password=Secret(""))
        return _handed_over, (type(self), settings, self._is_borrowed), self.__dict__ or None

    @property
    def _is_open(self) -> bool:
        try:
            object.__getattribute__(self, "_session")
        except AttributeError:
            return False
        return True

    def _require_own_login(self) -> None:
        if self._is_borrowed:
            raise LoginError(
                "a datastore over an xnatpy session that was given as connection cannot be used in another process",
                hint="open it with server, username and password there",
                url=self._settings.server,
            )

    def _end_with_process(self) -> None:
        """Have it closed when the process ends: MONAI Label never closes a datastore, and what waits must be written.

        The processes that multiprocessing starts end without what atexit would do.
        """
        close = _closing(weakref.ref(self))
        if parent_process() is not None:
            self._close_at_exit = Finalize(None, close, exitpriority=10).cancel
        else:
            atexit.register(close)
            self._close_at_exit = lambda: atexit.unregister(close)


def _closing(reference: weakref.ref[Reopening]) -> Callable[[], None]:
    def close() -> None:
        datastore = reference()
        if datastore is not None:
            datastore.close()

    return close


def _handed_over(kind: type[Kind], settings: Settings, is_borrowed: bool) -> Kind:
    """Make a datastore that opens itself at its first use."""
    made = kind.__new__(kind)
    made._settings = settings
    made._is_borrowed = is_borrowed
    return made
