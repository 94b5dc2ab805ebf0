"""How a MONAI Label app is told to use XNAT."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from monailabel.config import settings as monailabel_settings

from monailabel_xnat.datastore import XNATDatastore
from monailabel_xnat.errors import XNATDatastoreError

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore

logger = logging.getLogger(__name__)

DATASTORE_NAME = "xnat"

_CHOICE = "MONAI_LABEL_DATASTORE"

# Settings of other programs without which MONAI Label 0.8.5 fails in a fresh environment; whoever sets them, decides.
# mlflow 3 refuses the folder of files in which MONAI Label tracks a training, and every training would end in an error
# (https://github.com/Project-MONAI/MONAILabel, monailabel/tasks/train/basic_train.py: tracking is on by default).
_SAFE_DEFAULTS = {"MLFLOW_ALLOW_FILE_STORE": "true"}


class XNATAppMixin:
    """Gives an app the XNAT datastore with ``--conf datastore xnat`` or ``MONAI_LABEL_DATASTORE=xnat``.

    Name it first, and MONAI Label's class beside it, for MONAI Label looks for an app among classes that name it::

        class MyApp(XNATAppMixin, MONAILabelApp): ...

    XNAT's address comes from ``--studies``, user and password from ``MONAI_LABEL_XNAT_USERNAME`` and
    ``MONAI_LABEL_XNAT_PASSWORD`` or ``~/.netrc``, other settings from ``--conf xnat_<setting> <value>``. The same
    holds in the processes that MONAI Label starts for training, batch inference and scoring. Without the choice
    the app keeps the datastore it would have had.
    """

    studies: str
    conf: dict[str, str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which another one answers for the datastore before the mixin does."""
        super().__init_subclass__(**options)
        for other in cls.__mro__[: cls.__mro__.index(XNATAppMixin)]:
            decides = {"init_datastore", "init_remote_datastore"} & vars(other).keys()
            if decides and not issubclass(other, XNATAppMixin):
                raise TypeError(
                    f"class {cls.__name__} would not use XNAT: {other.__name__} comes before XNATAppMixin; "
                    f"name XNATAppMixin first: class {cls.__name__}(XNATAppMixin, {other.__name__})"
                )

    def init_datastore(self) -> Datastore:
        """Make the datastore that was asked for; called by MONAI Label when the app starts."""
        for name, value in _SAFE_DEFAULTS.items():
            os.environ.setdefault(name, value)
        if not self._wants_xnat():
            return super().init_datastore()  # type: ignore[misc]
        datastore = super().init_datastore() if self._is_remote() else self.init_remote_datastore()  # type: ignore[misc]
        if not isinstance(datastore, XNATDatastore):
            logger.warning("the app chose %s by itself; replaced by XNAT as asked", type(datastore).__name__)
            datastore = self._xnat_datastore()
        return datastore

    def init_remote_datastore(self) -> Datastore:
        """Make the XNAT datastore, or hand on; apps such as pathology override this in MONAI Label."""
        if not self._wants_xnat():
            return super().init_remote_datastore()  # type: ignore[misc]
        return self._xnat_datastore()

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> Any:
        """Run a model on many images, as MONAI Label does, on a machine without a GPU as well.

        MONAI Label 0.8.5 spreads the images over the GPUs unless told otherwise, and divides by zero where there is
        none (monailabel/interfaces/tasks/batch_infer.py).
        """
        # Brings torch, which whoever runs a model has loaded already.
        from monailabel.utils.others.generic import device_list

        if device_list() == ["cpu"]:
            request = {"multi_gpu": False, **request}
        return super().batch_infer(request, datastore)  # type: ignore[misc]

    def _wants_xnat(self) -> bool:
        return chosen_datastore(self.conf) == DATASTORE_NAME

    def _is_remote(self) -> bool:
        return self.studies.startswith(("http://", "https://"))

    def _xnat_datastore(self) -> XNATDatastore:
        # Without an address in --studies the settings name what is missing, or find it in the environment.
        address = self.studies if self._is_remote() else ""
        try:
            return XNATDatastore(address, conf=self.conf, environ=_environment())
        except XNATDatastoreError as error:
            # MONAI Label ends with a traceback whatever is raised here: say it plainly before, and keep that one short.
            logger.error("XNAT cannot be used: %s", error)
            raise error.with_traceback(None) from None


def chosen_datastore(conf: Mapping[str, Any]) -> str:
    """Return the name of the datastore that was chosen by ``--conf datastore`` or the environment; "" for none."""
    choice = conf.get("datastore") or getattr(monailabel_settings, _CHOICE, "") or ""
    return str(choice).strip().lower()


def _environment() -> dict[str, Any]:
    """Give the environment, with what MONAI Label found in a .env file where it has nothing."""
    from_file = {
        key: str(value)
        for key, value in monailabel_settings.model_dump().items()
        if key.startswith("MONAI_LABEL_DATASTORE") and value not in (None, "")
    }
    return {**from_file, **os.environ}
