"""The facts of a report, as plain values. All times are UTC in ISO 8601; all volumes are in millilitres."""

from __future__ import annotations

from dataclasses import dataclass

UNLABELLED, DRAFT, FINAL = "unlabelled", "draft", "final"
"""The states of an image: without a label; with labels, but none with the tag ``final``; with a label ``final``."""


@dataclass(frozen=True)
class ImageFacts:
    """One image that the settings choose, with the state of the work on it."""

    image: str
    project: str
    series_description: str
    modality: str
    state: str


@dataclass(frozen=True)
class Segment:
    """One structure of a label: its name, number of voxels and volume; these are None if they are not known."""

    name: str
    voxels: int | None
    volume: float | None


@dataclass(frozen=True)
class SavedLabel:
    """One version of a label.

    Attributes
    ----------
    image, project, tag, version
        Image id, project, tag, and name of the version. ``version`` is empty for a drawing, which has no versions.
    saved_at, saved_by, model
        When and by whom it was saved, and the model that made it; empty if that is not known.
    is_current
        Whether it is the present label of the image with this tag.
    in_xnat
        False while it waits in the outbox.
    segments
        Its structures; empty if they are not known.
    problem
        Why its description cannot be used; empty if nothing is wrong.
    """

    image: str
    project: str
    tag: str
    version: str
    saved_at: str
    saved_by: str
    model: str
    is_current: bool
    in_xnat: bool
    segments: tuple[Segment, ...]
    problem: str


@dataclass(frozen=True)
class Day:
    """The state of a project at the end of a day: how many of its present images had only a draft, or a final label."""

    date: str
    draft: int
    final: int


@dataclass(frozen=True)
class ProjectProgress:
    """The progress of a project: the present number of images in each state, and the numbers of earlier days.

    ``undated`` is the number of images whose label does not say when it was saved. They count from the first day on.
    """

    project: str
    images: int
    unlabelled: int
    draft: int
    final: int
    undated: int
    days: tuple[Day, ...]


@dataclass(frozen=True)
class Person:
    """The labels that one user has saved.

    Attributes
    ----------
    user
        Login name in XNAT; empty for labels that do not say who saved them.
    versions, drafts, finals
        The number of all versions, of those with another tag than ``final``, and of those with the tag ``final``.
    with_model
        The number of versions that name a model that made them.
    images
        The number of images with a label of this user.
    current
        The number of present labels that this user saved.
    last
        When the newest one was saved; empty if that is not known.
    """

    user: str
    versions: int
    drafts: int
    finals: int
    with_model: int
    images: int
    current: int
    last: str


@dataclass(frozen=True)
class StructureAgreement:
    """The agreement of two labels about one structure: Dice (0 to 1), average Hausdorff and Hausdorff distance in mm.

    The distances are None if one of the labels does not have the structure.
    """

    name: str
    dice: float
    mean_distance: float | None
    greatest_distance: float | None


@dataclass(frozen=True)
class Pair:
    """A comparison of the newest labels that two users saved for one image with one tag."""

    image: str
    tag: str
    users: tuple[str, str]
    structures: tuple[StructureAgreement, ...]


@dataclass(frozen=True)
class Agreement:
    """The agreement of two users about one structure, over all images that both have labelled.

    Attributes
    ----------
    users, structure
        The two users, and the name of the structure.
    dices
        The Dice coefficients of the images, in ascending order.
    mean_dice
        The mean of these coefficients.
    lowest_image
        The image with the lowest Dice coefficient.
    greatest_distance
        The greatest Hausdorff distance in mm; None if no image has the structure in both labels.
    """

    users: tuple[str, str]
    structure: str
    dices: tuple[float, ...]
    mean_dice: float
    lowest_image: str
    greatest_distance: float | None


@dataclass(frozen=True)
class Volume:
    """The volume of a structure in one image; ``side`` is ``small``, ``large`` or empty."""

    image: str
    state: str
    saved_by: str
    volume: float
    side: str = ""


@dataclass(frozen=True)
class StructureVolumes:
    """The volumes of a structure in a project, one for each image, in ascending order.

    Attributes
    ----------
    project, structure
        The project, and the name of the structure.
    volumes
        All volumes; the outliers have a side.
    first_quartile, median, third_quartile
        Quartiles and median of the volumes, with linear interpolation.
    has_fences
        Whether there are enough volumes to find outliers.
    """

    project: str
    structure: str
    volumes: tuple[Volume, ...]
    first_quartile: float
    median: float
    third_quartile: float
    has_fences: bool

    @property
    def outliers(self) -> tuple[Volume, ...]:
        """The volumes more than 1.5 interquartile ranges below the first or above the third quartile."""
        return tuple(volume for volume in self.volumes if volume.side)


@dataclass(frozen=True)
class LeftOut:
    """Something that is missing in the report or in the project: its kind, its name, and the reason."""

    kind: str
    what: str
    reason: str


@dataclass(frozen=True)
class Waiting:
    """A label on this computer that is not in XNAT yet; ``image`` is empty if no listed image has its id."""

    image: str
    tag: str
    saved_by: str
    state: str
    waits_for: str
    attempts: int


@dataclass(frozen=True)
class CacheFacts:
    """The cache of images on this computer: number, size in bytes, and limit; 0 gigabytes means no limit."""

    images: int
    bytes: int
    budget_gigabytes: float


@dataclass(frozen=True)
class Connection:
    """The connection to XNAT when the report was made; ``problem`` is empty if nothing is wrong."""

    server: str
    user: str
    requests: int
    repeated: int
    connections: int
    problem: str


@dataclass(frozen=True)
class Report:
    """All facts of a report."""

    made_at: str
    made_with: str
    images: tuple[ImageFacts, ...]
    labels: tuple[SavedLabel, ...]
    projects: tuple[ProjectProgress, ...]
    people: tuple[Person, ...]
    pairs: tuple[Pair, ...]
    agreement: tuple[Agreement, ...]
    volumes: tuple[StructureVolumes, ...]
    left_out: tuple[LeftOut, ...]
    outbox: tuple[Waiting, ...]
    cache: CacheFacts
    connection: Connection


@dataclass(frozen=True)
class Picture:
    """A picture of one slice of an image with its label.

    Attributes
    ----------
    image, tag, saved_by, why
        The image, tag and author of the label, and why it was chosen.
    structures
        The names of the structures on the slice, each with the number of its colour.
    png
        The content of the PNG file.
    """

    image: str
    tag: str
    saved_by: str
    why: str
    structures: tuple[tuple[str, int], ...]
    png: bytes
