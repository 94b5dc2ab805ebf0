"""The facts that a report consists of, as plain values; all times are UTC in ISO 8601, all volumes millilitres."""

from __future__ import annotations

from dataclasses import dataclass

UNLABELLED, DRAFT, FINAL = "unlabelled", "draft", "final"
"""What an image is: without a label, with labels of other tags than ``final`` only, or with a label ``final``."""


@dataclass(frozen=True)
class ImageFacts:
    """One image that the settings choose, and how far the work on it has come."""

    image: str
    project: str
    series_description: str
    modality: str
    state: str


@dataclass(frozen=True)
class Segment:
    """One structure of a label: its name, how many voxels it has, and its volume; None where that is not known."""

    name: str
    voxels: int | None
    volume: float | None


@dataclass(frozen=True)
class SavedLabel:
    """One version of a label.

    Attributes
    ----------
    image, project, tag, version
        What it is. ``version`` is empty for a drawing of a viewer, which has no versions.
    saved_at, saved_by, model
        When, by whom, and with which model; empty where that is not known.
    is_current
        Whether it is the label that the image has with this tag now.
    in_xnat
        False while it waits in the outbox.
    segments
        What it holds; empty where that is not known.
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
    """How many of today's images of a project had a draft only, and a final label, at the end of a day."""

    date: str
    draft: int
    final: int


@dataclass(frozen=True)
class ProjectProgress:
    """How far the work on a project has come, and how it came there.

    ``undated`` counts the images whose label does not say when it was saved; they count from the first day on.
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
    """What one user has saved.

    Attributes
    ----------
    user
        Login name in XNAT; empty for labels that do not say who saved them.
    versions, drafts, finals
        How many versions, and how many of them with another tag and with the tag ``final``.
    with_model
        How many of the versions name a model that made them.
    images
        How many images.
    current
        How many labels of today are theirs.
    last
        When the newest one was saved; empty where that is not known.
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
    """How far one structure agrees in two labels; distances in mm, None where it is missing in one of them."""

    name: str
    dice: float
    mean_distance: float | None
    greatest_distance: float | None


@dataclass(frozen=True)
class Pair:
    """The newest labels that two users saved for one image with one tag."""

    image: str
    tag: str
    users: tuple[str, str]
    structures: tuple[StructureAgreement, ...]


@dataclass(frozen=True)
class Agreement:
    """How far two users agree about one structure.

    Attributes
    ----------
    users, structure
        Who, and about what.
    dices
        The Dice coefficient of each image, ascending.
    mean_dice
        Their mean.
    lowest_image
        The image where they agree least.
    greatest_distance
        The greatest Hausdorff distance in mm; None where no image has the structure in both labels.
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
    """The volumes of a structure in a project, ascending, one label for each image.

    Attributes
    ----------
    project, structure
        What was measured.
    volumes
        All of them, the outliers with their side.
    first_quartile, median, third_quartile
        Of the volumes, interpolated linearly.
    has_fences
        Whether there are enough volumes to tell outliers.
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
        """The volumes beyond 1.5 interquartile ranges."""
        return tuple(volume for volume in self.volumes if volume.side)


@dataclass(frozen=True)
class LeftOut:
    """Something that the report or the work on the project is missing: of which kind, what, and why."""

    kind: str
    what: str
    reason: str


@dataclass(frozen=True)
class Waiting:
    """A label on this computer that is not in XNAT yet; ``image`` is empty where the listing has none of its id."""

    image: str
    tag: str
    saved_by: str
    state: str
    waits_for: str
    attempts: int


@dataclass(frozen=True)
class CacheFacts:
    """The images on this computer; ``budget_gigabytes`` is 0 where there is no limit."""

    images: int
    bytes: int
    budget_gigabytes: float


@dataclass(frozen=True)
class Connection:
    """The connection to XNAT while the report was made; ``problem`` is empty if nothing is wrong."""

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
    """A drawn slice of an image with its label.

    Attributes
    ----------
    image, tag, saved_by, why
        What it shows, and why it was chosen.
    structures
        The names on it, each with the number of its colour.
    png
        The file.
    """

    image: str
    tag: str
    saved_by: str
    why: str
    structures: tuple[tuple[str, int], ...]
    png: bytes
