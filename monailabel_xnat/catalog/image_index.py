"""All images at one moment, by their ids and by their other names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.errors import AmbiguousNameError, UnknownImageError
from monailabel_xnat.ids import EXPECTED_FORM, ImageId


class ImageIndex:
    """Scans that are images, by canonical id.

    Reading is safe while another thread changes the index. Tables of other names are made when they are first needed,
    because most clients use only canonical ids.

    Parameters
    ----------
    scans : dict of str to Scan
        The images. The dictionary is used as it is, and changed later; it is not copied.
    """

    def __init__(self, scans: dict[str, Scan]) -> None:
        self._scans = scans
        self._names: _OtherNames | None = None

    def __len__(self) -> int:
        return len(self._scans)

    def ids(self) -> list[str]:
        """Return the ids, as texts."""
        return list(self._scans)

    def scans(self) -> list[Scan]:
        """Return the images."""
        return list(self._scans.values())

    def get(self, image: str) -> Scan | None:
        """Return an image by its canonical id, as text."""
        return self._scans.get(image)

    def find(self, image: ImageId | str) -> Scan | None:
        """Return an image by any of its names, see :meth:`monailabel_xnat.catalog.catalog.Catalog.scan`; None if none.

        Raises
        ------
        InvalidIdError, UnknownImageError
            If the text does not have the form of an id.
        AmbiguousNameError
            If several images have the name.
        """
        found = self._scans.get(str(image))
        if found is not None:
            return found
        names = self._other_names()
        if isinstance(image, str):
            by_series = self._scans.get(names.by_series.get(image, ""))
            if by_series is not None:
                return by_series
            named = self.named(image)
            if len(named) > 1:
                raise ambiguous(image, named)
            if named:
                return named[0]
        return self._by_other_names(names, _parsed(image))

    def by_session(self, experiment: str, scan: str) -> Scan | None:
        """Return an image by the accession ID of its session and its scan ID, whatever its project."""
        return self._scans.get(self._other_names().by_session.get((experiment, scan), ""))

    def of_project(self, project: str) -> dict[str, Scan]:
        """Return the images that are listed under a project, by id."""
        return {image: scan for image, scan in self._scans.items() if scan.image_id.project == project}

    def named(self, name: str) -> list[Scan]:
        """Return the images that were added under a name."""
        found = (self._scans.get(image) for image in self._other_names().by_alias.get(name, ()))
        return [scan for scan in found if scan is not None]

    def edit(self, image: str, change: Callable[[Scan], Scan | None]) -> None:
        """Replace an image, given by its id, by what a change makes of it; remove it if that is nothing."""
        scan = self._scans.get(image)
        changed = change(scan) if scan else None
        if changed is not None:
            self._scans[str(changed.image_id)] = changed
        elif scan is not None:
            self._scans.pop(image, None)

    def take_over(self, before: ImageIndex) -> list[str]:
        """Use the objects of an earlier index for scans that have not changed, to save memory.

        Returns
        -------
        list of str
            Ids of the images that are new, have changed or are gone.
        """
        if not before._scans:
            return list(self._scans)
        changed = []
        for image, scan in self._scans.items():
            known = before._scans.get(image)
            if known == scan:
                self._scans[image] = known
            else:
                changed.append(image)
        if before._names is not None:
            self._other_names()
        return changed + self.lost_since(before)

    def lost_since(self, before: ImageIndex) -> list[str]:
        """Return the ids of images that an earlier index had and this one does not have."""
        return [image for image in before._scans if image not in self._scans]

    def _other_names(self) -> _OtherNames:
        if self._names is None:
            self._names = _OtherNames(dict(self._scans))
        return self._names

    def _by_other_names(self, names: _OtherNames, wanted: ImageId) -> Scan | None:
        """Return an image by accession ids, which are unique on a site, in any project; or by labels in its project."""
        scan = self._scans.get(names.by_session.get((wanted.experiment, wanted.scan), ""))
        if scan is not None and wanted.subject in (scan.image_id.subject, scan.subject_label):
            return scan
        for image in names.by_label.get((wanted.experiment, wanted.scan), ()):
            scan = self._scans.get(image)
            if (
                scan is not None
                and wanted.subject in (scan.subject_label, scan.image_id.subject)
                and wanted.project in (scan.image_id.project, scan.owner)
            ):
                return scan
        return None


class _OtherNames:
    """Tables that find ids of images: by SeriesInstanceUID, by name, and by scan id with accession id or label."""

    def __init__(self, scans: Mapping[str, Scan]) -> None:
        self.by_series: dict[str, str] = {}
        self.by_alias: dict[str, list[str]] = {}
        self.by_session: dict[tuple[str, str], str] = {}
        self.by_label: dict[tuple[str, str], list[str]] = {}
        for image, scan in scans.items():
            number = scan.image_id.scan
            self.by_session[scan.image_id.experiment, number] = image
            self.by_label.setdefault((scan.session_label, number), []).append(image)
            if scan.series_uid:
                self.by_series.setdefault(scan.series_uid, image)
            if scan.mark and scan.alias:
                self.by_alias.setdefault(scan.alias, []).append(image)


def ambiguous(name: str, images: Iterable[Scan | ImageId]) -> AmbiguousNameError:
    """Return the error about a name that several images have."""
    ids = [str(image.image_id if isinstance(image, Scan) else image) for image in images]
    return AmbiguousNameError(
        f"{len(ids)} images bear the name {name!r}: {', '.join(ids)}",
        hint="use one of these ids, or change the series description of one of the scans in XNAT",
    )


def _parsed(image: ImageId | str) -> ImageId:
    if isinstance(image, ImageId):
        return image
    if isinstance(image, str) and image and "/" not in image:
        raise UnknownImageError(
            f"no image {image!r}", hint=f"expected {EXPECTED_FORM}, a SeriesInstanceUID, or the name of an added image"
        )
    return ImageId.parse(image)
