"""What a report says, as plain records: no tensor, no table, nothing that is not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlltr_index.evaluation.metrics import EvaluationReport, Interval, ReliabilityBin
from vlltr_index.schemas.records import ClassScore


@dataclass(frozen=True, slots=True)
class Missing:
    """A part that cannot be shown: why, and what to run to have it."""

    why: str
    mend: str


@dataclass(frozen=True, slots=True)
class GroupGain:
    """Classes of about one size: what the method is above the other row on their images.

    Attributes:
        shot: `many`, `medium`, `few`, `few5` or `new`; here `few` is few without few5.
        classes: How many, and the names of the first and the last.
        first: Name of the largest class.
        last: Name of the smallest.
        largest: Training images of the largest.
        smallest: Of the smallest.
        gain: Paired difference of accuracy over the group's images.
    """

    shot: str
    classes: int
    first: str
    last: str
    largest: int
    smallest: int
    gain: Interval


@dataclass(frozen=True, slots=True)
class ClassGain:
    """One class's accuracy by both rows."""

    name: str
    shot: str
    train: int
    images: int
    method: float
    other: float


@dataclass(frozen=True, slots=True)
class Gains:
    """Gain over another row, classes ordered by falling size, and the classes it is largest and smallest for."""

    against: str
    groups: tuple[GroupGain, ...]
    most: tuple[ClassGain, ...]
    least: tuple[ClassGain, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """Means of loss parts by epoch: `values[name][i]` belongs to `epochs[i]`."""

    title: str
    epochs: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture as a data URI, its size in pixels; without a URI, why it cannot be shown."""

    uri: str | None
    width: int = 0
    height: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """One image's answer with what is behind it, and the right class where the answer is another."""

    picture: Thumbnail
    truth: str
    shot: str
    train: int
    best: ClassScore
    right: ClassScore | None  # None where `best` is right
    neighbours: tuple[Thumbnail, ...]  # training pictures of `best`, where the image side decided


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class that are taken for another; `example` is the surest of them."""

    truth: str
    taken_for: str
    shot: str
    wrong: int
    images: int
    example: Explained


@dataclass(frozen=True, slots=True)
class WeakClass:
    """A class with its accuracy, and what its images are taken for most often."""

    name: str
    shot: str
    train: int
    images: int
    right: int
    taken_for: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Anchor:
    """An anchor sentence; `loss` is its L_lin, None where it has none."""

    text: str
    source: str
    loss: float | None


@dataclass(frozen=True, slots=True)
class ClassAnchors:
    """A class's anchors by rank; `more` of them are not listed."""

    name: str
    train: int
    anchors: tuple[Anchor, ...]
    more: int


@dataclass(frozen=True, slots=True)
class AnchorList:
    """Anchors by class, in groups of classes that stand in order of name.

    Attributes:
        groups: Heading and classes.
        classes: Classes that have anchors, listed or not.
        total: Their anchors.
        each: Anchors of a class that are listed at most.
    """

    groups: tuple[tuple[str, tuple[ClassAnchors, ...]], ...]
    classes: int
    total: int
    each: int

    @property
    def listed(self) -> int:
        """How many classes are listed."""
        return sum(len(classes) for _, classes in self.groups)


@dataclass(frozen=True, slots=True)
class Problem:
    """A quarantined image."""

    where: str
    split: str
    why: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Images that take no part: how many by reason, and the first of them."""

    total: int
    reasons: tuple[tuple[str, int], ...]
    shown: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What needs a head and an evaluated split.

    Attributes:
        evaluation: The figures; the method is its first row, the branches follow.
        reliability: Confidence against accuracy, of the method and the row it is compared with.
        gains: By class size, over the baseline.
        confusions: Most frequent first.
        weakest: Classes by rising accuracy.
        gallery: Headings with explained answers: wrong ones and right ones, each tail first.
    """

    evaluation: EvaluationReport
    reliability: Mapping[str, tuple[ReliabilityBin, ...]]
    gains: Gains | Missing
    confusions: tuple[Confusion, ...]
    weakest: tuple[WeakClass, ...]
    gallery: tuple[tuple[str, tuple[Explained, ...]], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    Attributes:
        title: The workspace's name.
        split: Which images were evaluated.
        facts: What this is about: commit, recipe, protocol, versions, counts, as (label, value).
        notes: Things a reader must know.
        measured: Accuracy and all that follows from it.
        curves: Of stage 1, stage 2 and the baseline, those there are.
        anchors: By class.
        quarantine: Images left out.
    """

    title: str
    split: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    measured: Measured | Missing
    curves: tuple[Curves | Missing, ...]
    anchors: AnchorList | Missing
    quarantine: Quarantine
