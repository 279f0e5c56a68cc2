"""Plain records that several packages share. None of them holds a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[str, int, int | None], None]
"""Called as `progress(step, done, total)`; `total` is None if it is unknown."""

IndexKind = Literal["torch", "flat", "ivf", "hnsw"]
"""Kinds of an index over anchors; the first two are exact."""

FEW_UNITS = 30
"""Below so many units a share says too little: counts are given instead."""

MANY_ANCHORS = 64_000
"""Number of anchors from which retrieval is quicker than scoring all classes: four times for clustered anchors."""


@dataclass(frozen=True, slots=True)
class SentenceRecord:
    """One sentence about one class, as a reader yields it."""

    class_name: str
    text: str
    source: str
    source_ref: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image, as a reader yields it: a path, or the bytes in a Parquet file."""

    source: str  # path below the source's root, or a row's own name; identifies the image within its split
    uri: str  # absolute path of the file, or `file.parquet#row`
    class_name: str | None
    split: str
    data: bytes | None = None
    group: str | None = None  # images of one group are held out together: a font, a camera, a burst


@dataclass(frozen=True, slots=True)
class Skipped:
    """A part of a source that was left out, and the reason."""

    where: str  # file, or file:line
    why: str
    ref: str | None = (
        None  # URI of an image, or source_ref of a text, that stays in although it cannot be used now
    )
    class_name: str | None = None  # that a text is about


@dataclass(frozen=True, slots=True)
class Taxon:
    """A class, or a name above classes, as a reader yields it, with its parent and rank."""

    name: str
    parent: str | None
    rank: str | None = None
    aliases: tuple[str, ...] = ()
    where: str = ""  # file and line


@dataclass(frozen=True, slots=True)
class SentenceShare:
    """Share of a sentence in its class's text score.

    `share` is in points of the text score, see `ClassScore`; the shares of all the class's anchors add up to it, and
    may be negative. `percent` is 100 * share / sum of the absolute shares of the class, -100 to 100. `effect` is the
    fall of the text score if the sentence is struck out, the others unchanged. Sentences of a class that differ only by
    a template have the same `group`.
    """

    text: str
    source: str
    source_ref: str | None
    licence: str | None
    attention: float
    share: float
    effect: float
    percent: float
    group: int


_TOLD = 0.1  # share of a class's contributions below which those of its text are not explained


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image of a class, and its cosine with the query image."""

    image_id: str
    uri: str
    cosine: float


def by_group(sentences: Sequence[SentenceShare]) -> list[list[SentenceShare]]:
    """Divide sentences into their groups, in the order of the first sentence of each."""
    groups: dict[int, list[SentenceShare]] = {}
    for sentence in sentences:
        groups.setdefault(sentence.group, []).append(sentence)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Probability of a class, with the parts of each branch.

    If `unit` is `log-odds`, `image_part + text_part + prior_part` is log P(this class) / P(the best other class); if it
    is `probability` (the fusion rule `paper`), the sum is the probability. `image_part` is what it would be if no class
    had a text, `text_part` what all texts add, `prior_part` what is due to how common the classes are; 0 where all are
    taken to be equally common. If `without_images`, the class has no training image, and its `image_part` is that of a
    class of which nothing is known; if texts do not count either, the class is `unknown`, is never the answer beside
    others, and has an `image_part` of about -100,000. `cosine` is that of image and attended text, exact if sentences
    were requested or all classes were scored; None without a text tower, and without any sentence. `text_score` is what
    the class's own sentences add to its log-score (under `paper` and `logits`: the text logit); between two trained
    classes with sentences the difference of both is what text gave; None unless sentences were requested.
    """

    class_id: int
    name: str
    probability: float
    image_part: float
    text_part: float
    cosine: float | None
    sentences: tuple[SentenceShare, ...] = ()
    unit: str = "probability"  # | "log-odds"
    neighbours: tuple[Neighbour, ...] = ()
    prior_part: float = 0.0
    text_score: float | None = None
    without_images: bool = False
    unknown: bool = False

    @property
    def image_share(self) -> float:
        """Share of the image part in the sum of the positive parts, 0 to 1; a half if none is positive, and 1 if the
        text gave nothing.
        """
        image = max(self.image_part, 0.0)
        text = max(self.text_part, 0.0)
        if self.mute:
            return 1.0
        return image / (image + text) if image + text else 0.5

    @property
    def mute(self) -> bool:
        """Whether the text gave nothing, but for rounding, so that no sentence explains the answer."""
        return abs(self.text_part) < 1e-5

    @property
    def is_explained_by_text(self) -> bool:
        """Whether the text contribution is a tenth of the sum of all, at least, so that sentences explain something."""
        whole = self.image_part + self.text_part + self.prior_part
        return not self.mute and abs(self.text_part) >= _TOLD * abs(whole)

    @property
    def by_image(self) -> bool:
        """Whether the image side decided for the class."""
        return self.image_part > max(self.text_part, 0.0)

    @property
    def folded(self) -> list[list[SentenceShare]]:
        """The sentences by group; each group is shown as one line."""
        return by_group(self.sentences)


@dataclass(frozen=True, slots=True)
class RankScore:
    """A node of the tree of classes, with the summed probability of all classes that it holds.

    The `percent` of a sentence is that in its class's text score, times the class's share of the probability.
    """

    node: str
    rank: str
    probability: float
    sentences: tuple[SentenceShare, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best classes for one image, best first.

    `ranks` are what the best class lies below, from the top, itself the last; there are none without a tree of classes.
    `answer` is the node that `min_accuracy` gave, None where no rank can answer or that was not asked. The images of a
    `group` have one answer together.
    """

    image: str
    classes: tuple[ClassScore, ...]
    residual: float  # probability of the classes that were not scored exactly (0 when exhaustive)
    retrieval: str  # "faiss" | "exhaustive"
    commit: int  # the commit that answered; after a rollback the one that was restored
    problem: str | None = None  # why the image could not be read; then `classes` is empty
    known: bool | None = None  # whether the image is of any of the classes; None without `reject`
    known_score: float | None = None  # how well it fits the classes, by which this was decided
    ranks: tuple[RankScore, ...] = ()
    answer: RankScore | None = None
    group: str | None = None
