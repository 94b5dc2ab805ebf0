"""Pictures of slices of images with their labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_xnat.cli.common import Opened
from monailabel_xnat.cli.report.facts import LeftOut, Picture, Report, SavedLabel
from monailabel_xnat.cli.report.summaries import shown_labels
from monailabel_xnat.convert.itk import png_of, simpleitk
from monailabel_xnat.errors import XNATDatastoreError

COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (255, 255, 255),
)
"""The colours of structures (red, green, blue), which colour-blind people can tell apart (Okabe and Ito).

page.css has the same colours.
"""

_LONGEST_SIDE = 256  # pixels
_OPACITY = 0.35
_SOFT_TISSUE = (-160.0, 240.0)  # HU
_GREY_SHARES = (1.0, 99.0)  # percentiles of the intensities that become black and white
# The directions of columns, rows and slices of a picture, as radiologists look at it, by the axis along which the
# slices are stacked. The letters are SimpleITK's: L means "to the left".
_UPRIGHT = ("PIL", "LIP", "LPS")


def draw_pictures(
    parts: Opened, report: Report, most: int, step: Callable[[], None]
) -> tuple[list[Picture], list[LeftOut]]:
    """Draw the labels that a person should look at; return the pictures, and the labels that could not be drawn.

    Images that are not on this computer are downloaded.

    Parameters
    ----------
    parts : Opened
        The parts of the datastore.
    report : Report
        The facts about the labels.
    most : int
        How many labels are drawn at most: first those with outliers, then those about which users agree least, then
        the newest.
    step : callable
        Called after each label.
    """
    colours = _colours(report)
    modalities = {image.image: image.modality for image in report.images}
    drawn: list[Picture] = []
    failures: list[LeftOut] = []
    for label, structure, why in _worth_drawing(report)[:most]:
        try:
            scan = parts.catalog.scan(label.image)
            path = parts.labels.path(scan, label.tag)
            segments = parts.labels.description(scan, label.tag).get("segments") or ()
            values = {int(segment["value"]): str(segment["name"]) for segment in segments}
            known = {value: colours.setdefault(name, len(colours)) for value, name in values.items()}
            wanted = {value for value, name in values.items() if name == structure}
            is_ct = modalities[label.image] == "CT"
            png, present = draw(parts.images.path(scan), path, known, wanted, is_ct=is_ct)
            structures = {(values.get(value, f"value {value}"), known[value] % len(COLOURS)) for value in present}
        # SimpleITK raises RuntimeError for a file that it cannot read.
        except (XNATDatastoreError, OSError, RuntimeError, ValueError) as error:
            failures.append(LeftOut("picture", f"{label.image} {label.tag}", str(error)))
        else:
            drawn.append(Picture(label.image, label.tag, label.saved_by, why, tuple(sorted(structures)), png))
        step()
    return drawn, failures


def _worth_drawing(report: Report) -> list[tuple[SavedLabel, str, str]]:
    """Return the labels to draw, the most important first, each with a structure ("" for all) and the reason."""
    shown = shown_labels(report.labels)
    reasons: dict[str, tuple[str, str]] = {}
    for measured in report.volumes:
        for value in measured.outliers:
            reasons.setdefault(value.image, (measured.structure, f"{measured.structure} unusually {value.side}"))
    lowest = [(item.dice, item.name, pair) for pair in report.pairs for item in pair.structures if item.dice < 1.0]
    for dice, name, pair in sorted(lowest, key=lambda item: item[:2]):
        why = f"{' and '.join(pair.users)} agree about {name} with a Dice of {dice:.2f}"
        reasons.setdefault(pair.image, (name, why))
    for label in sorted(shown.values(), key=lambda label: label.saved_at, reverse=True):
        reasons.setdefault(label.image, ("", "newest labels"))
    return [(shown[image], *why) for image, why in reasons.items() if image in shown]


def _colours(report: Report) -> dict[str, int]:
    """Return the number of the colour of each structure, by name; it is the same in all pictures."""
    names = sorted({segment.name for label in report.labels for segment in label.segments})
    return {name: number for number, name in enumerate(names)}


def draw(
    image: Path, label: Path, colours: Mapping[int, int], wanted: Collection[int], *, is_ct: bool
) -> tuple[bytes, set[int]]:
    """Draw the slice with most voxels of the wanted values, or of all values if none are wanted.

    Parameters
    ----------
    image, label : Path
        Two files on one voxel grid.
    colours : mapping of int to int
        Number of the colour of each value of the label.
    wanted : collection of int
        Values of the label by which the slice is chosen; may be empty.
    is_ct : bool
        Whether the image holds Hounsfield units.

    Returns
    -------
    bytes
        The content of a PNG file.
    set of int
        The values that have a colour and are on that slice.

    Raises
    ------
    ValueError
        If the files have different numbers of voxels, or are not three-dimensional.
    RuntimeError
        If SimpleITK cannot read one of the files.
    """
    sitk = simpleitk()
    shown, marks = sitk.ReadImage(str(image)), sitk.ReadImage(str(label), sitk.sitkUInt16)
    if shown.GetNumberOfComponentsPerPixel() > 1:
        shown = sitk.VectorIndexSelectionCast(shown, 0)
    if shown.GetSize() != marks.GetSize() or shown.GetDimension() != 3:
        raise ValueError(f"the image has {shown.GetSize()} voxels, the label {marks.GetSize()}")
    voxels = sitk.GetArrayViewFromImage(marks)
    index = int((np.isin(voxels, list(wanted)) if wanted else voxels > 0).sum(axis=(1, 2)).argmax())
    grey = _upright(sitk.Cast(shown[:, :, index : index + 1], sitk.sitkFloat32), sitk.sitkLinear)
    values = _upright(marks[:, :, index : index + 1], sitk.sitkNearestNeighbor)
    pixels = sitk.GetArrayFromImage(grey)
    low, high = _SOFT_TISSUE if is_ct else np.percentile(pixels, _GREY_SHARES)
    pixels = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1) * 255
    pixels = np.repeat(pixels[..., None], 3, axis=2)
    borders = sitk.GetArrayFromImage(sitk.LabelContour(values))
    array = sitk.GetArrayFromImage(values)
    present = {int(value) for value in np.unique(array)} & colours.keys()
    for value in present:
        colour = np.array(COLOURS[colours[value] % len(COLOURS)], float)
        inside = array == value
        pixels[inside] = (1 - _OPACITY) * pixels[inside] + _OPACITY * colour
        pixels[borders == value] = colour
    return png_of(sitk.GetImageFromArray(pixels.round().astype(np.uint8), isVector=True)), present


def _upright(slab: Any, interpolator: int) -> Any:
    """Return a volume of one slice as a two-dimensional image, turned as radiologists see it, with square pixels."""
    sitk = simpleitk()
    normal = slab.GetDirection()[2::3]
    turned = sitk.DICOMOrient(slab, _UPRIGHT[int(np.argmax(np.abs(normal)))])
    if turned.GetSize()[2] == 1:  # otherwise it is so oblique that its axes were exchanged: then it is not turned
        slab = turned
    flat = sitk.GetImageFromArray(sitk.GetArrayFromImage(slab)[0])
    flat.SetSpacing(slab.GetSpacing()[:2])
    sides = [size * spacing for size, spacing in zip(flat.GetSize(), flat.GetSpacing(), strict=True)]
    pixel = max(sides) / _LONGEST_SIDE
    size = [max(1, round(side / pixel)) for side in sides]
    resample = sitk.ResampleImageFilter()
    resample.SetSize(size)
    resample.SetOutputSpacing((pixel, pixel))
    # The first pixel lies in the corner of the first voxel. That is outside of all voxel centres, so values must be
    # extrapolated there.
    resample.SetOutputOrigin([(pixel - spacing) / 2 for spacing in flat.GetSpacing()])
    resample.UseNearestNeighborExtrapolatorOn()
    resample.SetInterpolator(interpolator)
    return resample.Execute(flat)
