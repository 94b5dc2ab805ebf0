"""Inference with a model of a MONAI Label app on many images, without a server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from monailabel.interfaces.app import MONAILabelApp

from monailabel_xnat.app.jobs import SAVED, WAITS
from monailabel_xnat.app.launcher import app_on_xnat
from monailabel_xnat.errors import LabelNotUploadedError, SettingsError
from monailabel_xnat.labels.index import DRAFT_TAG

logger = logging.getLogger(__name__)


def open_app(folder: Path, studies: str, conf: Mapping[str, str]) -> MONAILabelApp:
    """Return a MONAI Label app on XNAT, made as its server would make it.

    Parameters
    ----------
    folder : Path
        The folder of the app.
    studies : str
        Address of the XNAT site.
    conf : mapping
        The entries of ``--conf``.

    Raises
    ------
    SettingsError
        If there is no app in the folder.
    """
    kind = app_on_xnat(str(folder))
    return kind(app_dir=str(folder), studies=studies, conf={**conf, "datastore": "xnat"})


def images_without_draft(app: MONAILabelApp) -> list[str]:
    """Return the images that have neither a final label nor a draft."""
    datastore = app.datastore()
    drafts = set(datastore.get_labeled_images(DRAFT_TAG))
    return [image for image in datastore.get_unlabeled_images() if image not in drafts]


def infer_all(
    app: MONAILabelApp,
    model: str,
    images: Iterable[str],
    *,
    device: str = "",
    done: Callable[[str, str], None] | None = None,
) -> dict[str, str]:
    """Run a model on images, and save its labels as drafts with the tag ``original``. A failure does not stop the run.

    Parameters
    ----------
    app : MONAILabelApp
        The app.
    model : str
        Name of one of the app's models.
    images : iterable of str
        Image ids.
    device : str
        The device on which the model runs, such as ``cuda:0`` or ``cpu``; "": the app chooses.
    done : callable or None
        Called after each image with its id and its outcome.

    Returns
    -------
    dict of str to str
        Outcome by image id: `SAVED`, `WAITS`, or the reason why there is no label.

    Raises
    ------
    SettingsError
        If the app has no such model.
    """
    request = request_for(app, model, device)
    outcomes = {}
    for image in images:
        outcomes[image] = inferred(app, {**request, "image": image})
        if done:
            done(image, outcomes[image])
    return outcomes


def request_for(app: MONAILabelApp, model: str, device: str) -> dict[str, object]:
    """Return the request for a model, but for the image.

    Raises
    ------
    SettingsError
        If the app has no such model.
    """
    models = sorted(app.info()["models"])
    if model not in models:
        raise SettingsError(f"the app has no model {model!r}", hint=f"it has {', '.join(models)}")
    # Without a level, MONAI Label logs dozens of lines for each image at the level INFO, among them the image's path.
    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    request = {"model": model, "save_label": True, "label_tag": DRAFT_TAG, "logging": level}
    return {**request, "device": device} if device else request


def inferred(app: MONAILabelApp, request: dict[str, object]) -> str:
    """Run a model over an image, save what it finds, and return the outcome as :func:`infer_all` has it."""
    try:
        result = app.infer(request)
    except LabelNotUploadedError as error:
        logger.info("not in XNAT yet: %s", error)
        return WAITS
    except Exception as error:
        logger.info("no label for %s", request["image"], exc_info=True)
        return f"{type(error).__name__}: {error}"
    file = result.get("file")
    if file:
        with suppress(OSError):
            Path(str(file)).unlink()
    return SAVED if result.get("label") else "the model gave no label"
