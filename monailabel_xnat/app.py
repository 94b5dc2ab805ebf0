"""How a MONAI Label app is told to use XNAT."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from monailabel.config import settings as monailabel_settings

from monailabel_xnat.datastore import XNATDatastore
from monailabel_xnat.errors import XNATDatastoreError

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore

logger = logging.getLogger(__name__)

DATASTORE_NAME = "xnat"

_CHOICE = "MONAI_LABEL_DATASTORE"


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

    def init_datastore(self) -> Datastore:
        """Make the datastore that was asked for; called by MONAI Label when the app starts."""
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

    def _wants_xnat(self) -> bool:
        choice = self.conf.get("datastore") or getattr(monailabel_settings, _CHOICE, "") or ""
        return str(choice).strip().lower() == DATASTORE_NAME

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


def _environment() -> dict[str, Any]:
    """Give the environment, with what MONAI Label found in a .env file where it has nothing."""
    from_file = {
        key: str(value)
        for key, value in monailabel_settings.model_dump().items()
        if key.startswith("MONAI_LABEL_DATASTORE") and value not in (None, "")
    }
    return {**from_file, **os.environ}
