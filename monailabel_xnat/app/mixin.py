"""The mixin that makes a MONAI Label app use XNAT."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.config import settings as monailabel_settings

from monailabel_xnat.app import volumes
from monailabel_xnat.app.strategies import quick_choice
from monailabel_xnat.config import ENVIRONMENT_PREFIX
from monailabel_xnat.datastore import XNATDatastore
from monailabel_xnat.datastore.client_errors import errors_for_clients
from monailabel_xnat.errors import ImageError, UnknownImageError, XNATDatastoreError
from monailabel_xnat.training.dataset import labels_of_model

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore

logger = logging.getLogger(__name__)

DATASTORE_NAME = "xnat"

_CHOICE = "MONAI_LABEL_DATASTORE"
_BACKGROUND = "background"
_WAIT = ENVIRONMENT_PREFIX + "WAIT"
# How often a strategy is asked for a next sample if its choice turns out to be no volume.
_TRIES = 10

# Environment variables of other programs without which MONAI Label 0.8.5 fails in a fresh environment. A value that the
# user has set is not changed. mlflow 3 refuses the folder of files in which MONAI Label tracks a training, so every
# training would end in an error (https://github.com/Project-MONAI/MONAILabel, monailabel/tasks/train/basic_train.py:
# tracking is on by default).
_SAFE_DEFAULTS = {"MLFLOW_ALLOW_FILE_STORE": "true"}


class XNATAppMixin:
    """Opens the XNAT datastore in an app, with ``--conf datastore xnat`` or ``MONAI_LABEL_DATASTORE=xnat``.

    Name the mixin first, and MONAI Label's class as a direct base as well, because MONAI Label finds an app by it::

        class MyApp(XNATAppMixin, MONAILabelApp): ...

    The address of XNAT comes from ``--studies``; user and password come from ``MONAI_LABEL_XNAT_USERNAME`` and
    ``MONAI_LABEL_XNAT_PASSWORD`` or ``~/.netrc``; other settings come from ``--conf xnat_<setting> <value>``. The same
    is true in the processes that MONAI Label starts for training, batch inference and scoring. If XNAT is not chosen,
    the app uses the datastore that it would use without the mixin.
    """

    studies: str
    conf: dict[str, str]
    _slides: frozenset[str] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which another base class comes before the mixin and makes the datastore."""
        super().__init_subclass__(**options)
        for other in cls.__mro__[: cls.__mro__.index(XNATAppMixin)]:
            decides = {"init_datastore", "init_remote_datastore"} & vars(other).keys()
            if decides and not issubclass(other, XNATAppMixin):
                raise TypeError(
                    f"class {cls.__name__} would not use XNAT: {other.__name__} comes before XNATAppMixin; "
                    f"name XNATAppMixin first: class {cls.__name__}(XNATAppMixin, {other.__name__})"
                )

    def init_datastore(self) -> Datastore:
        """Return the datastore that was chosen. MONAI Label calls this when the app starts."""
        for name, value in _SAFE_DEFAULTS.items():
            os.environ.setdefault(name, value)
        if not self._wants_xnat():
            return super().init_datastore()  # type: ignore[misc]
        volumes.spare_planners(self)
        datastore = super().init_datastore() if self._is_remote() else self.init_remote_datastore()  # type: ignore[misc]
        if not isinstance(datastore, XNATDatastore):
            logger.warning("the app chose %s by itself; replaced by XNAT as asked", type(datastore).__name__)
            datastore = self._xnat_datastore()
        return datastore

    def init_remote_datastore(self) -> Datastore:
        """Return the XNAT datastore if it was chosen, otherwise the one of the app's own method.

        Some apps of MONAI Label, such as pathology, override this method.
        """
        if not self._wants_xnat():
            return super().init_remote_datastore()  # type: ignore[misc]
        return self._xnat_datastore()

    def train(self, request: Mapping[str, Any]) -> Any:
        """Train a model on labels whose voxel values are those of this model; structures are matched by name.

        Viewers and models number structures in different ways. If the setting ``labels`` is empty, the names and values
        of the trained model are used. Those of the app are not, because an app may have several models.
        """
        datastore = self.datastore()  # type: ignore[attr-defined]
        if not isinstance(datastore, XNATDatastore):
            return super().train(request)  # type: ignore[misc]
        with labels_of_model(self._labels_of(str(request.get("model", "")))):
            result = super().train(request)  # type: ignore[misc]
        # MONAI Label shows clients only the last lines of a training's log. Repeat here what was logged at its start.
        for name, effect in datastore.status().get("label_names", {}).items():
            logger.warning("labels in the training set: %s %s", name, effect)
        return result

    def _labels_of(self, model: str) -> dict[str, int]:
        """Return the values that a model segments, by name: from its bundle, its trainer, or the model itself."""
        trainer = self._trainers.get(model)  # type: ignore[attr-defined]
        if trainer is None:  # MONAI Label reports that there is no such model
            return {}
        bundle = getattr(trainer, "bundle_metadata_path", None)
        if bundle:
            return values_of(_channels_of(Path(bundle)))
        model_task = self._infers.get(model)  # type: ignore[attr-defined]
        return values_of(trainer.info().get("labels")) or values_of(getattr(model_task, "labels", None))

    def next_sample(self, request: Mapping[str, Any]) -> Any:
        """Return the next image to annotate, and claim it for the client that asks.

        If the strategy chooses a scan that is no volume, it is asked again. It does not choose the same scan a second
        time, because a scan that was found to be no volume is no longer among the unlabelled images.

        Raises
        ------
        ImageError
            If the strategy chose ten scans that are no volume.
        """
        strategies = getattr(self, "_strategies", {})
        for name, strategy in strategies.items():
            if not isinstance(strategy, _Claiming):
                strategies[name] = _Claiming(strategy)
        for attempt in range(1, _TRIES + 1):
            try:
                return super().next_sample(request)  # type: ignore[misc]
            except ImageError as error:
                if attempt == _TRIES:
                    raise
                logger.info("the next sample is chosen anew: %s", error)
        raise AssertionError  # the last try returns or raises

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> Any:
        """Run a model on an image. In a batch inference, a scan that is no volume is left out with a warning.

        Raises
        ------
        ImageNotFoundException
            If there is no such image (also an UnknownImageError), or the id is the path of a file on this machine.
        ImageError
            If the image is no volume, and the request does not belong to a batch inference.
        """
        self._require_image(request)
        try:
            return super().infer(request, datastore)  # type: ignore[misc]
        except ImageError as error:
            if not volumes.is_one_of_a_batch(request):
                raise
            logger.warning("an image is left out of a batch inference, for it is no volume")
            logger.info("left out of a batch inference: %s", error)
            return {}

    def infer_wsi(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> Any:
        """Run a model on parts of a large image.

        MONAI Label asks for each part by the path of the image, so this path is allowed from now on.
        """
        image = request.get("image")
        self._require_image(request)
        if isinstance(image, str) and not _is_path(image):
            self._slides |= {self.datastore().get_image_uri(image)}  # type: ignore[attr-defined]
        return super().infer_wsi(request, datastore)  # type: ignore[misc]

    def _require_image(self, request: Mapping[str, Any]) -> None:
        """Refuse an id that is no image: MONAI Label would open any file on this machine whose path is given as id."""
        datastore, image = self.datastore(), request.get("image")  # type: ignore[attr-defined]
        # Outside of a server, a script may use any file that it can read.
        if not (getattr(self, "_server_mode", False) or volumes.is_one_of_a_batch(request)):
            return
        if not isinstance(datastore, XNATDatastore) or not isinstance(image, str) or image in self._slides:
            return
        if not _is_path(image):
            datastore.image_id(image)
        elif not self._was_sent(Path(image).resolve()):
            with errors_for_clients():
                raise UnknownImageError(f"no image {image!r}", hint="images are named by their ids, never by a path")

    def _was_sent(self, path: Path) -> bool:
        """Return whether a client has sent a file: with its request, or earlier, for a session."""
        # MONAI Label 0.8.5 stores an upload under a name made by tempfile (monailabel/endpoints/infer.py).
        temporary = Path(tempfile.gettempdir()).resolve()
        if path.parent == temporary and path.name.startswith(tempfile.gettempprefix()):
            return True
        sessions = self.sessions()  # type: ignore[attr-defined]
        return sessions is not None and Path(sessions.store_path).resolve() in path.parents

    def init_batch_infer(self) -> Any:
        """Return the task of a batch inference, which leaves out scans that are known to be no volume."""
        return volumes.without_others(super().init_batch_infer())  # type: ignore[misc]

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> Any:
        """Run a model on many images as MONAI Label does, also on a machine without a GPU.

        By default MONAI Label 0.8.5 divides the images among the GPUs, and without a GPU it divides by zero
        (monailabel/interfaces/tasks/batch_infer.py).
        """
        # This import loads torch, which a process that runs a model needs in any case.
        from monailabel.utils.others.generic import device_list

        if device_list() == ["cpu"]:
            request = {"multi_gpu": False, **request}
        return super().batch_infer(request, datastore)  # type: ignore[misc]

    def _wants_xnat(self) -> bool:
        return chosen_datastore(self.conf) == DATASTORE_NAME

    def _is_remote(self) -> bool:
        return self.studies.startswith(("http://", "https://"))

    def _xnat_datastore(self) -> XNATDatastore:
        # If --studies is not an address, the settings take it from the environment, or say that it is missing.
        address = self.studies if self._is_remote() else ""
        try:
            return XNATDatastore(address, conf=self.conf, environ=server_environment())
        except XNATDatastoreError as error:
            # MONAI Label ends with a traceback of any error that is raised here. So log the reason first, and keep the
            # traceback short.
            logger.error("XNAT cannot be used: %s", error)
            raise error.with_traceback(None) from None


def _is_path(image: str) -> bool:
    """Return whether MONAI Label would take an id for the path of a file."""
    return os.path.exists(image)  # noqa: PTH110 - the same call as MONAI Label's; it never raises an error


class _Claiming:
    """A strategy of an app, wrapped so that its choice is claimed before a client gets it."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Any:
        if not isinstance(datastore, XNATDatastore):
            return self._strategy(request, datastore)
        choose = quick_choice(self._strategy) or self._strategy
        return datastore.hand_out(lambda: choose(request, datastore), str(request.get("client_id") or ""))

    def __getattr__(self, name: str) -> Any:
        if name == "_strategy":  # a copy that is still being made has no strategy yet
            raise AttributeError(name)
        return getattr(self._strategy, name)


def values_of(labels: object) -> dict[str, int]:
    """Return the voxel values by name of the structures in the labels of a MONAI Label task; {} if they have none.

    Parameters
    ----------
    labels : object
        A mapping from name to value is used as it is. In a list the first structure has the value 1, as in MONAI
        Label's own transforms (``monailabel/transform/post.py``) and viewers. ``background`` is not a structure.
    """
    if isinstance(labels, str):
        labels = [labels]
    if isinstance(labels, Mapping):
        named = {str(name): value for name, value in labels.items() if str(name).casefold() != _BACKGROUND}
    elif isinstance(labels, (list, tuple)):
        structures = [str(name) for name in labels if str(name).casefold() != _BACKGROUND]
        named = {name: number for number, name in enumerate(structures, start=1)}
    else:
        return {}
    # 0 is not the voxel value of a structure: models with this value classify images, not voxels.
    are_values = all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in named.values())
    return named if are_values else {}


def _channels_of(metadata: Path) -> dict[str, int]:
    """Return the output channels of a bundle by name, from ``channel_def`` of MONAI's bundle specification."""
    outputs = json.loads(metadata.read_text(encoding="utf-8")).get("network_data_format", {}).get("outputs", {})
    channels: Mapping[str, str] = next(iter(outputs.values())).get("channel_def", {}) if outputs else {}
    return {str(name): int(number) for number, name in channels.items() if str(number).isdecimal()}


def chosen_datastore(conf: Mapping[str, Any]) -> str:
    """Return the name of the datastore that ``--conf datastore`` or the environment chooses; "" if none is chosen."""
    choice = conf.get("datastore") or getattr(monailabel_settings, _CHOICE, "") or ""
    return str(choice).strip().lower()


def server_environment() -> dict[str, Any]:
    """Return the environment, completed with what MONAI Label found in a .env file and with a default for ``wait``.

    By default a server waits for XNAT: it should start even if XNAT cannot be reached for a moment.
    """
    from_file = {
        key: str(value)
        for key, value in monailabel_settings.model_dump().items()
        if key.startswith("MONAI_LABEL_DATASTORE") and value not in (None, "")
    }
    return {_WAIT: "true", **from_file, **os.environ}
