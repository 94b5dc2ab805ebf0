"""What a PUT can ask for besides fields: data out of the DICOM headers, and scan types out of series descriptions."""

from __future__ import annotations

from collections import Counter

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Fields, Scan
from monailabel_xnat.sandbox.archive.owners import owner_of
from monailabel_xnat.sandbox.archive.resources import Resources
from monailabel_xnat.sandbox.http.request import Request

# What a person may have said about a scan stays, unless it says nothing.
_KEPT = ("type", "quality")
_SAYS_NOTHING = ("", "Unknown")
_OF_DICOM = ("DICOM", "secondary")


class HeaderActions:
    """The actions, on an archive."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def run(self, request: Request, session: Experiment, scan: Scan | None = None) -> None:
        """Do what the request asks for, to one scan or to a session with all its scans."""
        if request.flag("pullDataFromHeaders"):
            self._pull(session, scan)
        if request.flag("fixScanTypes") and scan is None:
            self._fix_types(session)

    def _pull(self, session: Experiment, only: Scan | None) -> None:
        # Not at the start: it brings pydicom.
        from monailabel_xnat.sandbox.dicom.headerfields import SCAN_FIELDS, SESSION_FIELDS, header_fields
        from monailabel_xnat.sandbox.dicom.series import SeriesFiles, read_series

        found: list[SeriesFiles] = []
        types = self._archive.types
        for scan in [only] if only else self._archive.scans(session.id):
            for resource in self._resources.of(owner_of(self._archive, scan)):
                folder = self._resources.folder(resource)
                if (resource.label in _OF_DICOM or resource.format == "DICOM") and folder.is_dir():
                    series = read_series(folder)
                    found += series
                    for item in series[:1]:
                        fields = header_fields(types, scan.xsi_type, item, SCAN_FIELDS)
                        self._archive.set_fields("scans", "pk", scan.pk, _kept(scan, fields))
        if only is None and found:
            fields = header_fields(types, session.xsi_type, found[0], SESSION_FIELDS)
            self._archive.set_fields("experiments", "id", session.id, dict(fields))

    def _fix_types(self, session: Experiment) -> None:
        """Set the type of scans that have none: that of their like in the project, else their series description."""
        known: dict[str, Counter[str]] = {}
        rows = self._archive.store.all(_TYPES, (session.project,))
        for row in rows:
            known.setdefault(_plain(row["description"]), Counter())[row["type"]] += 1
        for scan in self._archive.scans(session.id):
            description = str(scan.fields.get("series_description") or "")
            if description and not scan.fields.get("type"):
                types = known.get(_plain(description))
                found = types.most_common(1)[0][0] if types else description
                self._archive.set_fields("scans", "pk", scan.pk, {"type": found})


_TYPES = (
    "SELECT json_extract(scans.fields, '$.series_description') AS description, json_extract(scans.fields, '$.type') AS"
    " type FROM scans JOIN experiments ON experiments.id = scans.experiment"
    " WHERE experiments.project = ? AND description IS NOT NULL AND type IS NOT NULL ORDER BY scans.pk"
)


def _kept(scan: Scan, fields: dict[str, str]) -> Fields:
    return {
        name: value
        for name, value in fields.items()
        if name not in _KEPT or str(scan.fields.get(name) or "") in _SAYS_NOTHING
    }


def _plain(description: str) -> str:
    """Return a description as XNAT compares them: letters and digits, in one case."""
    return "".join(letter for letter in description.upper() if letter.isalnum())
