"""Content of the report, as plain records without tensors or tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlltr_index.evaluation.metrics import ClassFigures, EvaluationReport, Interval, ReliabilityBin
from vlltr_index.schemas.records import ClassScore


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the report that cannot be shown: the reason, and the command that makes it available."""

    why: str
    mend: str


@dataclass(frozen=True, slots=True)
class GroupGain:
    """Gain of accuracy over another row for a group of classes of similar size.

    Attributes:
        shot: `many`, `medium`, `few`, `few5` or `new`; here `few` does not include `few5`.
        classes: Number of classes.
        first: Name of the largest class.
        last: Name of the smallest class.
        largest: Training images of the largest class.
        smallest: Training images of the smallest class.
        gain: Paired difference of accuracy on the group's images.
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
    """Accuracy of both rows on one class, with its training images and its test images."""

    name: str
    shot: str
    train: int
    images: int
    method: float
    other: float


@dataclass(frozen=True, slots=True)
class Gains:
    """Gain over another row by groups of classes, in falling size, and for the classes of largest and smallest gain."""

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
    """A small picture as a data URI with its size in pixels, or the reason why it cannot be shown."""

    uri: str | None
    width: int = 0
    height: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """The answer for one image with its explanation, and the right class if the answer is wrong."""

    picture: Thumbnail
    file: str  # the image's file and its folder
    truth: str
    shot: str
    train: int
    best: ClassScore
    right: ClassScore | None  # None if `best` is right
    neighbours: tuple[Thumbnail, ...]  # training pictures of `best`, if the image side decided


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class that are taken for another: the most confident one explained, and some others.

    Attributes:
        truth: The class.
        taken_for: The other class.
        shot: The size of the class, see `SHOTS`.
        wrong: How many of its images are taken for the other.
        images: How many images it has.
        example: The most confident of them.
        others: More of them with their files, the more confident first.
    """

    truth: str
    taken_for: str
    shot: str
    wrong: int
    images: int
    example: Explained
    others: tuple[tuple[str, Thumbnail], ...]


@dataclass(frozen=True, slots=True)
class WeakClass:
    """A class of low accuracy, and the classes that its images are taken for most often."""

    name: str
    shot: str
    train: int
    images: int
    right: int
    taken_for: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Anchor:
    """An anchor sentence; `loss` is its L_lin, None if it is unknown."""

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
    """Anchors by class, in groups of classes ordered by name.

    Attributes:
        groups: Heading and classes of each group.
        classes: Number of classes that have anchors, listed or not.
        total: Number of their anchors.
        each: Most anchors of a class that are listed.
    """

    groups: tuple[tuple[str, tuple[ClassAnchors, ...]], ...]
    classes: int
    total: int
    each: int

    @property
    def listed(self) -> int:
        """Number of classes that are listed."""
        return sum(len(classes) for _, classes in self.groups)


@dataclass(frozen=True, slots=True)
class Problem:
    """A quarantined image, with the reason."""

    where: str
    split: str
    why: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Images that are not used: their number by reason, and the first of them."""

    total: int
    reasons: tuple[tuple[str, int], ...]
    shown: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """The parts of the report that need a head and an evaluated split.

    Attributes:
        evaluation: The evaluation; its first row is the method, followed by the branches.
        verdict: What it means, in sentences.
        classes: Figures of each class, or of those with the fewest training images where there are thousands.
        reliability: Accuracy by confidence, of the method and the row that it is compared with.
        gains: Gain over the baseline by class size.
        confusions: Confusions, most frequent first.
        weakest: Classes by rising accuracy.
        gallery: Headings with explained answers, wrong and right ones; each with the smallest classes first.
    """

    evaluation: EvaluationReport
    verdict: tuple[str, ...]
    classes: tuple[ClassFigures, ...]
    reliability: Mapping[str, tuple[ReliabilityBin, ...]]
    gains: Gains | Missing
    confusions: tuple[Confusion, ...]
    weakest: tuple[WeakClass, ...]
    gallery: tuple[tuple[str, tuple[Explained, ...]], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Content of the whole report.

    Attributes:
        title: The workspace's name.
        split: The split that was evaluated.
        facts: Commit, recipe, protocol, versions and counts, as (label, value).
        notes: Remarks for the reader.
        measured: Accuracy and all parts that depend on it.
        curves: Loss curves of stage 1, stage 2 and the baseline, as far as there are any.
        anchors: Anchors by class.
        quarantine: Images that are not used.
    """

    title: str
    split: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    measured: Measured | Missing
    curves: tuple[Curves | Missing, ...]
    anchors: AnchorList | Missing
    quarantine: Quarantine
