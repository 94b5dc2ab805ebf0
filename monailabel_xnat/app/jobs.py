"""A model of a MONAI Label app run by workers, on this or other machines, each of which loads the app itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from monailabel_xnat.background import completed
from monailabel_xnat.labels.index import DRAFT_TAG
from monailabel_xnat.training.dataset import TRAINING_TAG

if TYPE_CHECKING:
    from monailabel.interfaces.app import MONAILabelApp

SAVED, WAITS = "saved", "waits for XNAT in the outbox"


class Job(NamedTuple):
    """What a worker must know to run a model: where the app is, and how it is started there. It holds no secret.

    Parameters
    ----------
    folder : str
        The folder of the app, which each worker sees under this path.
    studies : str
        Address of the XNAT site.
    conf : tuple of (str, str)
        What ``--conf`` would give.
    model : str
        Name of one of its models.
    device : str
        Where the model runs; "" leaves it to the app.
    """

    folder: str
    studies: str
    conf: tuple[tuple[str, str], ...]
    model: str
    device: str = ""


_app_of_this_worker: dict[Job, MONAILabelApp] = {}
# One image at a time: apps of MONAI Label rely on it.
_one_at_a_time = threading.Lock()


def infer_elsewhere(
    executor: Executor, job: Job, images: Sequence[str], done: Callable[[str, str], None] | None = None
) -> dict[str, str]:
    """Run a model over images in workers; each of them opens the app once, and saves what its model finds.

    A task holds the job and an image id. Dask gives the tasks of a worker that died to another one, which leaves an
    image alone that has a label by then.

    Parameters
    ----------
    executor : Executor
        Leads to the workers, such as a Client of Dask. They log in with the environment of their own process or
        ``~/.netrc``.
    job : Job
        What they run.
    images : sequence of str
        Image ids.
    done : callable or None
        Called after each image with its id and outcome, in this thread.

    Returns
    -------
    dict of str to str
        Outcome by image id, in the order of the images: `SAVED`, `WAITS` with the machine whose outbox has the label,
        or why there is none.
    """
    outcomes = {}
    for image, came in completed(executor, partial(infer_in_worker, job), images):
        outcomes[image] = str(came.result) if came.error is None else f"{type(came.error).__name__}: {came.reason}"
        if done:
            done(image, outcomes[image])
    return {image: outcomes[image] for image in images}


def infer_in_worker(job: Job, image: str) -> str:
    """Run a model over one image in a worker, which keeps the app for the next one.

    Parameters
    ----------
    job : Job
        Which model of which app.
    image : str
        Image id.

    Returns
    -------
    str
        The outcome, as for :func:`infer_elsewhere`.

    Raises
    ------
    SettingsError
        If this worker sees no app in the folder, the app has no such model, or the worker knows no password.
    """
    # The computer that starts the work, and imports this module, needs no torch.
    from monailabel_xnat.app.batch import inferred, open_app, request_for

    with _one_at_a_time:
        app = _app_of_this_worker.get(job)
        if app is None:
            app = open_app(Path(job.folder), job.studies, dict(job.conf))
            # Runs in children of multiprocessing too, which atexit does not.
            Finalize(None, app.datastore().close, exitpriority=10)
            _app_of_this_worker[job] = app
        request = request_for(app, job.model, job.device)
        if {DRAFT_TAG, TRAINING_TAG} & app.datastore().get_labels_by_image_id(image).keys():
            return SAVED  # by a worker that died before it could say so
        outcome = inferred(app, {**request, "image": image})
    return f"{outcome} of {socket.gethostname()}" if outcome == WAITS else outcome
