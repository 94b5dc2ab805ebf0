"""The site's settings: those that the sandbox shows, and any that an administrator adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.seeding import SITE_ID

PUBLIC = frozenset(("siteId",))
FOR_USERS = PUBLIC | {
    "enableSitewideAnonymizationScript",
    "requireLogin",
    "sessionTimeout",
    "siteDescriptionText",
    "siteUrl",
    "sitewidePetTracers",
    "uiAllowNonAdminProjectCreation",
    "uiDefaultCompressedUploaderImporter",
}
_ANONYMISING = "enableSitewideAnonymizationScript"


class Preferences:
    """The settings of a site; changes last until the server ends.

    Parameters
    ----------
    archive
        Knows whether the anonymisation script is on.
    require_login
        Whether the site is closed.
    """

    def __init__(self, archive: Archive, require_login: bool) -> None:
        self._archive = archive
        self._require_login = require_login
        self._changed: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        """Return every setting."""
        return {
            "siteId": SITE_ID,
            "siteUrl": "",
            "siteDescriptionText": "A sandbox for demos and tests",
            "adminEmail": "admin@sandbox.invalid",
            "requireLogin": self._require_login,
            "sessionTimeout": "15 minutes",
            "passwordComplexityMessage": "",
            "sitewidePetTracers": "",
            "enableCsrfToken": True,
            "uiAllowNonAdminProjectCreation": True,
            "uiDefaultCompressedUploaderImporter": "DICOM-zip",
            "useSopInstanceUidToUniquelyIdentifyDicom": True,
            **self._changed,
            _ANONYMISING: self._archive.is_anonymising,
        }

    def change(self, values: Mapping[str, Any]) -> None:
        """Set some."""
        if _ANONYMISING in values:
            self._archive.is_anonymising = str(values[_ANONYMISING]).lower() == "true"
        self._changed.update(values)

    def reset(self) -> None:
        """Take back what was set."""
        self._changed.clear()
