"""What a worker in another process, or on another machine, does to fetch images."""

from __future__ import annotations

import threading
from multiprocessing.util import Finalize

from monailabel_xnat.catalog.listing import Scan
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.images import Images

_of_this_worker: dict[Settings, Images] = {}
_of_this_worker_guard = threading.Lock()


def fetch_one(settings: Settings, scan: Scan) -> None:
    """Fetch an image in a worker, which keeps one connection for all that it is given.

    Raises
    ------
    XNATDatastoreError
        As :meth:`Images.path`.
    """
    with _of_this_worker_guard:
        images = _of_this_worker.get(settings)
        if images is None:
            session = Session(settings)
            images = _of_this_worker[settings] = Images(session, settings)
            # Runs in children of multiprocessing too, which atexit does not.
            Finalize(None, session.close, exitpriority=10)
    images.path(scan)
