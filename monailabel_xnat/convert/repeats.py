"""Slices that lie at one position: copies to drop, or the volumes of a 4-D series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from monailabel_xnat.convert import pixels
from monailabel_xnat.convert.frames import TIME_TRAITS, TRAITS, Frame, Trait
from monailabel_xnat.convert.headers import ImageHeader
from monailabel_xnat.convert.series import name_files
from monailabel_xnat.errors import ImageConversionError

Group = Sequence[Frame]
Headers = Mapping[Path, ImageHeader]

_CHOOSE_OTHER = "remove the images that do not belong to the volume, or choose another scan"


def drop_identical_files(images: Sequence[ImageHeader]) -> tuple[list[ImageHeader], list[str]]:
    """Drop files that repeat an image (same SOP Instance UID, same pixels).

    Returns
    -------
    list of ImageHeader
        Each image once, the first by path.
    list of str
        A note that names what was dropped.

    Raises
    ------
    ImageConversionError
        If two files claim to be one image and differ.
    """
    kept: dict[str, ImageHeader] = {}
    dropped = []
    for image in images:
        earlier = kept.setdefault(image.sop_instance_uid or str(image.path), image)
        if earlier is image:
            continue
        planes = [[frame.plane for frame in header.frames] for header in (earlier, image)]
        if planes[0] != planes[1] or not _same_pixels(earlier.frames, image.frames, [earlier, image]):
            message = f"{earlier.path.name} and {image.path.name} have one SOP Instance UID, but differ"
            raise ImageConversionError(message, hint="remove the wrong one")
        dropped.append(image.path)
    notes = [f"dropped {len(dropped)} files that repeat an image: {name_files(dropped)}"] if dropped else []
    return list(kept.values()), notes


def order_repeats(groups: Sequence[Group], headers: Headers) -> tuple[list[Frame], list[str]]:
    """Put the frames of a series in order, volume after volume.

    Positions that hold identical pixels several times are reduced to one. If every position is then there once
    it is one volume; if each is there equally often it is a 4-D series (`TRAITS` says by what its volumes are
    told apart).

    Parameters
    ----------
    groups : sequence of sequences of Frame
        The frames at each position, in slice order.
    headers : mapping of Path to ImageHeader
        The headers of their files.

    Returns
    -------
    list of Frame
        Slice after slice, volume after volume.
    list of str
        Notes.

    Raises
    ------
    ImageConversionError
        If positions repeat irregularly, or nothing tells the volumes apart.
    """
    if all(len(group) == 1 for group in groups):
        return [group[0] for group in groups], []
    groups, notes = _drop_copies(groups, headers)
    counts = {len(group) for group in groups}
    if counts == {1}:
        return [group[0] for group in groups], notes
    if len(counts) > 1:
        raise _irregular(groups)
    ordered, rule = _volumes(groups, headers)
    notes.append(f"{len(ordered[0])} volumes at {len(groups)} positions, told apart by {rule}")
    return [frame for volume in zip(*ordered) for frame in volume], notes


def _drop_copies(groups: Sequence[Group], headers: Headers) -> tuple[list[list[Frame]], list[str]]:
    """Drop frames with the pixels of another at their position.

    Where every position repeats equally often, that is done only if the volumes are copies altogether: a blank
    slice may well be the same in two volumes of a time series.
    """
    regular = len({len(group) for group in groups}) == 1
    unique: list[list[Frame]] = []
    for group in _middle_first(groups) if regular else groups:
        kept = [
            frame
            for at, frame in enumerate(group)
            if not any(_same_pixels([earlier], [frame], headers.values()) for earlier in group[:at])
        ]
        if regular and len(kept) > 1:
            return [list(group) for group in groups], []
        unique.append(kept)
    if regular:
        unique = [list(group[:1]) for group in groups]
    kept_paths = {(frame.path, frame.index) for group in unique for frame in group}
    dropped = [f.path for group in groups for f in group if (f.path, f.index) not in kept_paths]
    if not dropped:
        return unique, []
    return unique, [f"dropped {len(dropped)} images with the position and pixels of another: {name_files(dropped)}"]


def _middle_first(groups: Sequence[Group]) -> list[Group]:
    middle = len(groups) // 2
    return [groups[middle], *groups[:middle], *groups[middle + 1 :]]


def _same_pixels(these: Group, those: Group, images: object) -> bool:
    headers = {image.path: image for image in images}  # type: ignore[attr-defined]
    left, right = (pixels.read_slices(list(frames), headers) for frames in (these, those))
    return all(
        one.dtype == other.dtype and np.array_equal(one.values(one.dtype), other.values(one.dtype), equal_nan=True)
        for one, other in zip(left, right)
    )


def _irregular(groups: Sequence[Group]) -> ImageConversionError:
    counts = Counter(len(group) for group in groups)
    usual = counts.most_common(1)[0][0]
    odd = [group for group in groups if len(group) != usual]
    total = sum(len(group) for group in groups)
    places = "; ".join(f"{len(group)} x at {_position(group[0])}: {_names(group)}" for group in odd[:3])
    return ImageConversionError(
        f"{total} images at {len(groups)} positions, {usual} at most of them, but {places}", hint=_CHOOSE_OTHER
    )


def _volumes(groups: Sequence[Group], headers: Headers) -> tuple[list[list[Frame]], str]:
    """Order the frames at each position by volume; say by what."""
    count = len(groups[0])
    for name in TRAITS if len(groups) > 1 else TIME_TRAITS:
        values = _trait_values(groups, name)
        distinct = {value for group in values for value in group}
        separate = None not in distinct and len(distinct) == count
        if separate and all(set(group) == distinct for group in values):
            return [_sorted_by(group, keys) for group, keys in zip(groups, values)], name
    numbers = [[(frame.order, frame.index) for frame in group] for group in groups]
    one_file = len({frame.path for group in groups for frame in group}) == 1
    if (len(groups) > 1 or one_file) and all(len(set(keys)) == count for keys in numbers):
        ordered = [_sorted_by(group, keys) for group, keys in zip(groups, numbers)]
        return ordered, "frame number" if one_file else "Instance Number"
    raise ImageConversionError(
        f"{count} different images at each of {len(groups)} positions, first at {_position(groups[0][0])}: "
        f"{_names(groups[0])}; nothing in their headers makes them volumes of a 4-D series",
        hint=_CHOOSE_OTHER,
    )


def _trait_values(groups: Sequence[Group], name: str) -> list[list[Trait | None]]:
    values = [[frame.traits.get(name) for frame in group] for group in groups]
    if name != "Dimension Index Values" or any(value is None for group in values for value in group):
        return values
    return _without_space(values)  # type: ignore[arg-type,return-value]


def _without_space(values: list[list[tuple[int, ...]]]) -> list[list[tuple[int, ...]]]:
    """Keep the dimensions in which frames at one position differ: the others are space."""
    length = min(len(value) for group in values for value in group)
    kept = [n for n in range(length) if any(len({value[n] for value in group}) > 1 for group in values)]
    return [[tuple(value[n] for n in kept) for value in group] for group in values]


def _sorted_by(group: Group, keys: Sequence[object]) -> list[Frame]:
    return [group[at] for at in sorted(range(len(group)), key=lambda at: keys[at])]  # type: ignore[arg-type,return-value]


def _position(frame: Frame) -> str:
    position = frame.plane.position if frame.plane else (0.0, 0.0, 0.0)
    return "(" + ", ".join(f"{value:.2f}" for value in position) + ") mm"


def _names(group: Group) -> str:
    if len({frame.path for frame in group}) == 1 < len(group):
        frames = ", ".join(str(frame.index + 1) for frame in group[:5])
        return f"frames {frames} of {group[0].path.name}"
    return name_files(frame.path for frame in group)
