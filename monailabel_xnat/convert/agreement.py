"""How well two label maps of one image agree, for each structure, as SimpleITK's filters measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from monailabel_xnat.convert.itk import png_of, simpleitk
from monailabel_xnat.disk import must_work, write_whole
from monailabel_xnat.errors import LabelGeometryError

# The values of one structure in a label map.
Values: TypeAlias = tuple[int, ...]

# Headers of two files on the same grid may differ in their last digits.
_TOLERANCE = 1e-4
_FIRST_ONLY, _SECOND_ONLY, _BOTH = 1, 2, 3
# Red, green and blue for the values 0, 1 and 2: green, orange, blue. ITK starts again with the first colour for the
# value 3. Value 0 is not drawn. People who are colour-blind can tell these three colours apart, too.
_COLOURS = (0, 158, 115, 230, 159, 0, 0, 114, 178)


@dataclass(frozen=True)
class Agreement:
    """How well two label maps agree on one structure.

    Attributes
    ----------
    name
        Name of the structure.
    dice
        Twice the common volume, divided by the sum of both volumes: 0 to 1. It is 1 if both are empty.
    volumes
        Volume in the first and in the second label map, in millilitres.
    mean_distance
        Average Hausdorff distance in mm: the greater of the two directed mean distances. None if the structure is
        missing in one of the label maps.
    greatest_distance
        Hausdorff distance in mm; None if the structure is missing in one of the label maps.
    """

    name: str
    dice: float
    volumes: tuple[float, float]
    mean_distance: float | None
    greatest_distance: float | None


def compare_labels(first: Path, second: Path, names: Mapping[str, tuple[Values, Values]]) -> list[Agreement]:
    """Compare two label maps.

    Parameters
    ----------
    first, second : Path
        Files of label maps on one voxel grid (slices, rows, columns).
    names : mapping
        For each name of a structure, its values in the first and in the second label map: several where a structure
        was drawn in parts, none where a label map does not have the structure.

    Returns
    -------
    list of Agreement
        One for each structure, in the order of ``names``.

    Raises
    ------
    LabelGeometryError
        If the two label maps do not lie on the same grid.
    """
    one, other = _read_pair(first, second)
    return [_agreement(name, _mask(one, here), _mask(other, there)) for name, (here, there) in names.items()]


def draw_difference(
    image: Path, first: Path, second: Path, names: Mapping[str, tuple[Values, Values]], target: Path
) -> None:
    """Draw the slice on which two label maps differ most, as a PNG.

    Voxels of the first label map only are orange, those of the second only are blue, those of both are green.

    Parameters
    ----------
    image : Path
        The image, on the grid of the labels.
    first, second, names
        As for :func:`compare_labels`.
    target : Path
        The file to write. It is a PNG, whatever its name ends in.

    Raises
    ------
    CacheError
        If the file cannot be written.
    LabelGeometryError
        If the image and the label maps do not lie on the same grid.
    """
    sitk = simpleitk()
    one, other = _read_pair(first, second)
    shown = sitk.ReadImage(str(image), sitk.sitkFloat32)
    _require_one_grid(shown, one)
    marks = sitk.Image(one.GetSize(), sitk.sitkUInt8)
    marks.CopyInformation(one)
    for here, there in names.values():
        found = _mask(one, here) * _FIRST_ONLY + _mask(other, there) * _SECOND_ONLY
        marks = sitk.Maximum(marks, found)
    array = sitk.GetArrayViewFromImage(marks)
    differing = ((array == _FIRST_ONLY) | (array == _SECOND_ONLY)).sum(axis=(1, 2))
    slice_index = int(differing.argmax()) if differing.any() else int((array > 0).sum(axis=(1, 2)).argmax())
    grey = sitk.Cast(sitk.RescaleIntensity(shown[:, :, slice_index], 0, 255), sitk.sitkUInt8)
    drawn = sitk.LabelOverlay(grey, marks[:, :, slice_index], 0.5, 0, _COLOURS)
    with must_work(f"write {target}", "choose another file for the picture"):
        write_whole(target, png_of(drawn))


def values_by_name(description: Mapping[str, Any]) -> dict[str, Values]:
    """Return the values of a label by the names of its structures; two segments may bear one name."""
    found: dict[str, Values] = {}
    for segment in description.get("segments") or ():
        name = str(segment["name"])
        found[name] = (*found.get(name, ()), int(segment["value"]))
    return found


def beside(first: Mapping[str, Values], second: Mapping[str, Values]) -> dict[str, tuple[Values, Values]]:
    """Return the values of each structure in two labels, as :func:`compare_labels` takes them."""
    return {name: (first.get(name, ()), second.get(name, ())) for name in dict.fromkeys((*first, *second))}


def _mask(labels: Any, values: Values) -> Any:
    sitk = simpleitk()
    mask = sitk.Cast(labels * 0, sitk.sitkUInt8)
    for value in values:
        mask = sitk.Or(mask, labels == value)
    return mask


def _agreement(name: str, one: Any, other: Any) -> Agreement:
    sitk = simpleitk()
    sizes = tuple(int(sitk.GetArrayViewFromImage(mask).sum()) for mask in (one, other))
    spacing = one.GetSpacing()
    litres = spacing[0] * spacing[1] * spacing[2] / 1000
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(one, other)
    dice = float(overlap.GetDiceCoefficient(1)) if any(sizes) else 1.0
    if not all(sizes):
        return Agreement(name, dice, (sizes[0] * litres, sizes[1] * litres), None, None)
    distances = sitk.HausdorffDistanceImageFilter()
    distances.Execute(one, other)
    mean, greatest = float(distances.GetAverageHausdorffDistance()), float(distances.GetHausdorffDistance())
    return Agreement(name, dice, (sizes[0] * litres, sizes[1] * litres), mean, greatest)


def _read_pair(first: Path, second: Path) -> tuple[Any, Any]:
    sitk = simpleitk()
    one, other = (sitk.ReadImage(str(path), sitk.sitkUInt16) for path in (first, second))
    _require_one_grid(one, other)
    other.CopyInformation(one)  # the filters refuse differences in the last digits
    return one, other


def _require_one_grid(one: Any, other: Any) -> None:
    frames = [(*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()) for image in (one, other)]
    is_one = one.GetSize() == other.GetSize() and all(abs(a - b) <= _TOLERANCE for a, b in zip(*frames, strict=True))
    if not is_one:
        raise LabelGeometryError(
            f"the two cannot be compared: one has {one.GetSize()} voxels and the other {other.GetSize()}, "
            "or they lie at different places",
            hint="compare two labels of one image",
        )
