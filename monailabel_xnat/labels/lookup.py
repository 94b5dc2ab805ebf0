"""What labels an image has: in XNAT, in the outbox, and from MONAI Label's built-in datastore."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from monailabel_xnat.catalog import Resource, Scan
from monailabel_xnat.errors import ServerError, UnknownLabelError
from monailabel_xnat.labels.model import LabelVersion
from monailabel_xnat.labels.outbox import Entry, Outbox
from monailabel_xnat.labels.tags import is_tag, resource_of, tag_of
from monailabel_xnat.labels.versions import BUILT_IN_RESOURCE, Versions

DRAFT_TAG = "original"
"""MONAI Label's tag for what a model drew; what the built-in datastore left counts as such."""
_BUILT_IN_FILES = "*.nii.gz"


class Lookup:
    """Finds labels.

    Parameters
    ----------
    versions : Versions
        Those in XNAT.
    outbox : Outbox
        Those that wait.
    others : sequence of tuple
        Tag, resource and file pattern of labels that others left.
    """

    def __init__(self, versions: Versions, outbox: Outbox, others: Sequence[tuple[str, str, str]] = ()) -> None:
        self._versions = versions
        self._outbox = outbox
        self._others = (*others, (DRAFT_TAG, BUILT_IN_RESOURCE, _BUILT_IN_FILES))
        self._others_in: dict[str, list[tuple[str, str]]] = {}
        for tag, resource, pattern in self._others:
            self._others_in.setdefault(resource, []).append((tag, pattern))

    def tags(self, scan: Scan) -> list[str]:
        """List the tags that an image has labels with, waiting ones included; makes no request."""
        tags = set(self.tags_in_xnat(scan))
        tags.update(entry.tag for entry in self._outbox.of(scan.image_id))
        return sorted(tags)

    def tags_in_xnat(self, scan: Scan) -> list[str]:
        """List the tags that an image has labels with in XNAT; makes no request."""
        tags = set()
        for resource in scan.resources:
            ours = tag_of(resource.label)
            if ours and self._is_filled(scan, resource):
                tags.add(ours)
            for tag, pattern in self._others_in.get(resource.label, ()):
                if self._is_filled(scan, resource, pattern):
                    tags.add(tag)
        return sorted(tags) if tags else []

    def all(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """List the versions of a label, newest first; [] if there are none.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        if not is_tag(tag):
            return []
        label = resource_of(tag)
        stored = self._versions.of(scan, label) if scan.resource(label) else []
        if not stored:
            stored = self.foreign(scan, tag)
        names = {version.name for version in stored}
        pending = [version for version in self._pending(scan, tag) if version.name not in names]
        return sorted([*stored, *pending], key=_time_of, reverse=True)

    def find(self, scan: Scan, tag: str, version: str | None = None) -> LabelVersion:
        """Find a version of a label; the current one if none is named.

        Raises
        ------
        UnknownLabelError
            If there is no such label or version.
        ServerError
            If XNAT fails.
        """
        try:
            versions = self.all(scan, tag)
        except ServerError:
            versions = self._pending(scan, tag)  # while XNAT is away what waits is the newest there is
            if not versions:
                raise
        found = next((candidate for candidate in versions if version in (None, candidate.name)), None)
        if found is None:
            what = f"version {version} of the label" if version and versions else "label"
            raise UnknownLabelError(
                f"image {str(scan.image_id)!r} has no {what} with tag {tag!r}",
                hint=f"it has labels with the tags {', '.join(self.tags(scan)) or 'none'}",
            )
        return found

    def resource(self, scan: Scan, tag: str) -> str:
        """Return the label of the resource of the scan that holds a label in XNAT; makes no request.

        Raises
        ------
        UnknownLabelError
            If there is none.
        """
        labels = [resource_of(tag)] if is_tag(tag) else []
        labels += [resource for label_tag, resource, _ in self._others if label_tag == tag]
        for label in labels:
            if scan.resource(label):
                return label
        raise UnknownLabelError(
            f"image {str(scan.image_id)!r} has no label with tag {tag!r} in XNAT",
            hint=f"it has labels with the tags {', '.join(self.tags(scan)) or 'none'}; refresh() shows what is new",
        )

    def compare_anew(self, scans: Iterable[Scan] | None = None) -> None:
        """Have what others left in XNAT listed anew at its next use; of all images if none are named."""
        if scans is None:
            self._versions.compare_anew()
            return
        for scan in scans:
            for _, resource, pattern in self._others:
                if scan.resource(resource):
                    self._versions.compare_anew((scan.image_id, resource, pattern))

    def entry(self, scan: Scan, tag: str, version: str) -> Entry | None:
        """Find a version in the outbox."""
        return next((entry for entry in self._outbox.of(scan.image_id, tag) if entry.version == version), None)

    def foreign(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """List what others left, newest first: files in the resources of the settings, or the built-in datastore's.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        for label_tag, resource, pattern in self._others:
            if label_tag == tag and scan.resource(resource):
                found = self._versions.of(scan, resource, pattern)
                if found:
                    return found
        return []

    def _pending(self, scan: Scan, tag: str) -> list[LabelVersion]:
        return [LabelVersion(entry.version, entry.suffix) for entry in self._outbox.of(scan.image_id, tag)]

    def _is_filled(self, scan: Scan, resource: Resource, pattern: str = "") -> bool:
        """Tell whether a resource holds labels; as long as nobody has looked the files that the listing shows count."""
        known = self._versions.known(scan, resource.label, pattern)
        return known is None or bool(known)


def _time_of(version: LabelVersion) -> str:
    """Give what versions are ordered by: the name; what the built-in datastore left is older, in the order it has."""
    return version.name if version.saved_at else ""
