"""Slices that lie at the same position: copies, which are dropped, or the volumes of a 4-D series."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path

from monailabel_xnat.convert.dicom.frames import TIME_TRAITS, TRAITS, Frame, Trait
from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.convert.dicom.pixels import SliceValues
from monailabel_xnat.convert.dicom.series import name_files
from monailabel_xnat.convert.dicom.slices import read_slices
from monailabel_xnat.errors import ImageConversionError

Group = Sequence[Frame]
Headers = Mapping[Path, ImageHeader]

_MOST_TRAITS = 3
"""How many traits may be combined to tell volumes apart."""

_OF_ONE_VOLUME = (
    "Dimension Index Values",
    "Temporal Position Index",
    "Temporal Position Identifier",
    "Echo Time",
    "Inversion Time",
)
"""Traits whose values belong to one volume each. They count only if the frames at each position differ in them."""

_RISING = frozenset(("Trigger Time", "Echo Time", "Inversion Time"))
"""Traits whose values may vary a little within a volume. They must order the volumes alike at each position."""

_DAY = 86400.0
_TIME = re.compile(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?")

_CHOOSE_OTHER = "remove the images that do not belong to the volume, or choose another scan"


def drop_identical_files(images: Sequence[ImageHeader]) -> tuple[list[ImageHeader], list[str]]:
    """Drop files that repeat an image (same SOP Instance UID, same place, same pixels).

    Returns
    -------
    list of ImageHeader
        Each image once, the first by path.
    list of str
        A note that names the dropped files; empty if there are none.

    Raises
    ------
    ImageConversionError
        If two files have the same UID and place, but different pixels.
    """
    kept: dict[object, ImageHeader] = {}
    dropped = []
    for image in images:
        # Careless anonymisation gives all images the same UID, so images are the same only if their places are, too.
        planes = tuple(frame.plane for frame in image.frames)
        earlier = kept.setdefault((image.sop_instance_uid or image.path, planes), image)
        if earlier is image:
            continue
        if not _same_pixels(earlier, image):
            message = f"{earlier.path.name} and {image.path.name} have one SOP Instance UID, but differ"
            raise ImageConversionError(message, hint="remove the wrong one")
        dropped.append(image.path)
    notes = [f"dropped {len(dropped)} files that repeat an image: {name_files(dropped)}"] if dropped else []
    return list(kept.values()), notes


def _same_pixels(one: ImageHeader, other: ImageHeader) -> bool:
    headers = {one.path: one, other.path: other}
    values = [read_slices(image.frames, headers) for image in (one, other)]
    return all(left.equals(right) for left, right in zip(*values, strict=True))


def order_repeats(groups: Sequence[Group], headers: Headers) -> tuple[list[Frame], list[str]]:
    """Put the frames of a series in order, volume after volume.

    If every position occurs once, the series is one volume. If every position occurs equally often, and a trait (see
    `TRAITS`) tells complete volumes apart, it is a 4-D series. Otherwise a frame is dropped if another frame at its
    position has the same pixels. If positions still occur several times, and equally often, it is a 4-D series in the
    order of the Instance Numbers.

    Parameters
    ----------
    groups : sequence of sequences of Frame
        The frames at each position, in slice order.
    headers : mapping of Path to ImageHeader
        The headers of their files.

    Returns
    -------
    list of Frame
        The frames in order: slice after slice, volume after volume.
    list of str
        Notes on dropped frames, and on how volumes were told apart.

    Raises
    ------
    ImageConversionError
        If some positions occur more often than others, or nothing tells the volumes apart.
    """
    notes: list[str] = []
    traits = _separating_traits(groups)
    if not traits and any(len(group) > 1 for group in groups):
        groups, notes = _drop_copies(groups, headers)
    counts = {len(group) for group in groups}
    if counts == {1}:
        return [group[0] for group in groups], notes
    if len(counts) > 1:
        raise _irregular(groups)
    if traits:
        values = _values_together(groups, traits)
        ordered, apart = (
            [_sorted_by(group, keys) for group, keys in zip(groups, values, strict=True)],
            " x ".join(traits),
        )
        if (len(traits) > 1 or traits[0] == "Diffusion Gradient Orientation") and _are_numbered_alike(groups, ordered):
            ordered, apart = _numbered_volumes(groups)
    else:
        ordered, apart = _numbered_volumes(groups)
        _refuse_contradicted(ordered)
    notes.append(f"{len(ordered[0])} volumes at {len(groups)} positions, told apart by {apart}")
    return [frame for volume in zip(*ordered, strict=True) for frame in volume], notes


def _drop_copies(groups: Sequence[Group], headers: Headers) -> tuple[list[list[Frame]], list[str]]:
    """Drop a frame if another frame at its position has the same pixels; return the rest, and notes.

    If every position occurs equally often, frames are dropped only if all volumes are copies of each other, because a
    blank slice may be the same in two volumes of a time series.
    """
    regular = len({len(group) for group in groups}) == 1
    unique = []
    for group in _middle_first(groups) if regular else groups:
        unique.append(_without_copies(group, headers))
        if regular and len(unique[-1]) > 1:
            return [list(group) for group in groups], []
    if regular:
        unique = [list(group[:1]) for group in groups]
    kept = {(frame.path, frame.index) for group in unique for frame in group}
    dropped = [f.path for group in groups for f in group if (f.path, f.index) not in kept]
    if not dropped:
        return unique, []
    return unique, [f"dropped {len(dropped)} images with the position and pixels of another: {name_files(dropped)}"]


def _middle_first(groups: Sequence[Group]) -> list[Group]:
    middle = len(groups) // 2
    return [groups[middle], *groups[:middle], *groups[middle + 1 :]]


def _without_copies(group: Group, headers: Headers) -> list[Frame]:
    if len(group) == 1:
        return list(group)
    kept: list[tuple[Frame, SliceValues]] = []
    for frame, values in zip(group, read_slices(group, headers), strict=True):
        if not any(values.equals(earlier) for _, earlier in kept):
            kept.append((frame, values))
    return [frame for frame, _ in kept]


def _irregular(groups: Sequence[Group]) -> ImageConversionError:
    counts = Counter(len(group) for group in groups)
    usual = counts.most_common(1)[0][0]
    odd = [group for group in groups if len(group) != usual]
    total = sum(len(group) for group in groups)
    places = "; ".join(f"{len(group)} x at {_position(group[0])}: {_names(group)}" for group in odd[:3])
    return ImageConversionError(
        f"{total} images at {len(groups)} positions, {usual} at most of them, but {places}", hint=_CHOOSE_OTHER
    )


def _separating_traits(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the smallest set of traits by which each position has the same distinct values; empty if there is none."""
    if len(groups[0]) == 1 or len({len(group) for group in groups}) > 1:
        return ()
    names = TRAITS if len(groups) > 1 else TIME_TRAITS
    known = {name: _trait_values(groups, name) for name in names}
    present = [name for name, values in known.items() if all(value is not None for group in values for value in group)]
    for together in range(1, _MOST_TRAITS + 1 if len(groups) > 1 else 2):
        for chosen in combinations(present, together):
            if _separate(_values_together(groups, chosen)):
                return chosen
    return ()


def _separate(values: Sequence[Sequence[object]]) -> bool:
    distinct = set(values[0])
    return len(distinct) == len(values[0]) and all(
        len(group) == len(distinct) == len({*group} & distinct) for group in values
    )


def _values_together(groups: Sequence[Group], names: Sequence[str]) -> list[list[tuple[Trait | None, ...]]]:
    """Return the values of several traits for each frame, grouped by position."""
    columns = [_trait_values(groups, name) for name in names]
    return [list(zip(*values, strict=True)) for values in zip(*columns, strict=False)]


def _numbered_volumes(groups: Sequence[Group]) -> tuple[list[list[Frame]], str]:
    """Return the frames at each position in the order of their numbers, and the name of that number.

    It is the Instance Number, or the frame number if all frames are in one file.
    """
    one_file = len({frame.path for group in groups for frame in group}) == 1
    numbers = [[(frame.order, frame.index) for frame in group] for group in groups]
    ordered = [_sorted_by(group, keys) for group, keys in zip(groups, numbers, strict=True)]
    is_series = len(groups) > 1 or one_file or _is_dynamic(ordered[0])
    if is_series and all(len(set(keys)) == len(keys) for keys in numbers):
        return ordered, "frame number" if one_file else "Instance Number"
    raise ImageConversionError(
        f"{len(groups[0])} different images at each of {len(groups)} positions, first at "
        f"{_position(groups[0][0])}: {_names(groups[0])}; nothing in their headers makes them volumes of a 4-D series",
        hint=_CHOOSE_OTHER,
    )


def _is_dynamic(frames: Group) -> bool:
    """Return whether frames in the order of their numbers were acquired one after the other, by rounded times."""
    (times,) = _past_midnight([[frame.traits.get("Acquisition Time") for frame in frames]])
    known = [time for time in times if isinstance(time, float)]
    return len(known) == len(frames) and len(set(known)) > 1 and known == sorted(known)


def _refuse_contradicted(ordered: Sequence[Group]) -> None:
    """Refuse volumes made by Instance Number if another element contradicts them: slices may be missing then.

    Parameters
    ----------
    ordered : sequence of sequences of Frame
        The frames at each position, in the order of the volumes.

    Raises
    ------
    ImageConversionError
        If an element contradicts the volumes.
    """
    for name in (*_OF_ONE_VOLUME, "Trigger Time"):
        values = _trait_values(ordered, name)
        if any(None in group or len(set(group)) < len(group) for group in values):
            continue
        volume_of: dict[Trait | None, int] = {}
        for group, frames in zip(values, ordered, strict=True):
            mixed = name in _OF_ONE_VOLUME and any(volume_of.setdefault(value, n) != n for n, value in enumerate(group))
            if mixed or (name in _RISING and _ascent(group, name) != _ascent(values[0], name)):
                raise ImageConversionError(
                    f"the Instance Numbers make {len(group)} volumes of the images at {len(ordered)} positions, but "
                    f"{name} contradicts them, first at {_position(frames[0])}: {_names(frames)}",
                    hint=_CHOOSE_OTHER,
                )


def _ascent(values: Sequence[Trait | None], name: str) -> list[int]:
    """Return the places of values in ascending order. A heart beat may begin at any of its phases."""
    order = sorted(range(len(values)), key=lambda at: values[at])  # type: ignore[arg-type,return-value]
    first = order.index(0) if name == "Trigger Time" else 0
    return order[first:] + order[:first]


def _are_numbered_alike(groups: Sequence[Group], ordered: Sequence[Sequence[Frame]]) -> bool:
    """Return whether the Instance Numbers make the same volumes, so that they can give the order of the volumes."""
    try:
        numbered, _ = _numbered_volumes(groups)
    except ImageConversionError:
        return False
    volumes, others = (
        {frozenset((frame.path, frame.index) for frame in volume) for volume in zip(*stacks, strict=True)}
        for stacks in (ordered, numbered)
    )
    return volumes == others


def _trait_values(groups: Sequence[Group], name: str) -> list[list[Trait | None]]:
    values = [[frame.traits.get(name) for frame in group] for group in groups]
    if name == "Acquisition Time":
        return _past_midnight(values)
    if name != "Dimension Index Values" or any(value is None for group in values for value in group):
        return values
    return _without_space(values)  # type: ignore[arg-type,return-value]


def _past_midnight(values: list[list[Trait | None]]) -> list[list[Trait | None]]:
    """Return times of day as seconds; those after a midnight within the series follow those before it.

    The values are returned as they are if one of them is no time.
    """
    seconds: dict[Trait | None, float] = {}
    for value in {value for group in values for value in group}:
        found = _TIME.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return values
        hours, minutes, rest = (float(part or 0) for part in found.groups())
        seconds[value] = hours * 3600 + minutes * 60 + rest
    times = sorted(set(seconds.values()))
    # No series takes half a day, so the longest pause in the circle of the day is where no image was acquired.
    pause, start = max(((later - earlier, later) for earlier, later in pairwise(times)), default=(0.0, 0.0))
    late = start if pause > _DAY / 2 else 0.0
    return [[seconds[value] + _DAY * (seconds[value] < late) for value in group] for group in values]


def _without_space(values: list[list[tuple[int, ...]]]) -> list[list[tuple[int, ...]]]:
    """Keep only the dimensions in which frames at one position differ; the other dimensions are space."""
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
