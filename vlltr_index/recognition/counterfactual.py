"""Examine one image under one commit: its best classes, their sentences, comparisons, all with sentences left out.

Any sentences may be left out (`struck`). Then the answer is that which removing them would give: other sentences of the
class may be selected in their place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.anchors.selection import anchors_without
from vlltr_index.embedding.loading import numbers
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.recognition.state import TEXT_COLUMNS, texts_of
from vlltr_index.schemas.records import ClassScore, SentenceShare
from vlltr_index.store.tables import one_of
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.recognition.model import Model


@dataclass(frozen=True, slots=True)
class ExaminedSentence(SentenceShare):
    """An anchor sentence of a class with its share and effect; one that is left out has share 0, and its old effect."""

    sentence_id: str
    struck: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedClass(ClassScore):
    """A class's score for the image; fields ending in `before` are its values with no sentence left out.

    Attributes:
        probability_before: As `probability`.
        cosine_before: As `cosine`.
        text_score_before: As `text_score`.
        sentences: All its anchors, by share with no sentence left out, then those that came in for these; empty unless
            requested.
    """

    probability_before: float
    cosine_before: float
    text_score_before: float
    sentences: tuple[ExaminedSentence, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two classes for one image: why the first and not the second.

    Attributes:
        first: The class argued for, with its sentences.
        second: The class argued against, with its sentences.
        gap: Text score of the first minus that of the second.
        for_first: The first's sentences that widen the gap, strongest first.
        for_second: The second's sentences that narrow it, strongest first.
    """

    first: ExaminedClass
    second: ExaminedClass
    gap: float
    for_first: tuple[ExaminedSentence, ...]
    for_second: tuple[ExaminedSentence, ...]


class Examination:
    """One image under one commit; immutable, and every class is scored exactly.

    Args:
        model: The commit's model.
        feature: Float [D], unnormalised, from the commit's encoder.
    """

    def __init__(self, model: Model, feature: Tensor) -> None:
        self.model = model
        self.feature = feature
        self._whole = model.exhaustive(feature[None])
        self._last: tuple[frozenset[str], Model, FusedScores] = (frozenset(), model, self._whole)

    @classmethod
    def of(cls, model: Model, image: str | Path | bytes) -> Examination:
        """Examine an image file, or its bytes.

        Raises:
            InputError: If it cannot be read.
        """
        return cls(model, model.feature(image))

    def scores(self, struck: Collection[str] = ()) -> FusedScores:
        """Return fused scores of all classes, in rows of one, as they are after `struck` was removed.

        A class of which nothing is left has no column.

        Args:
            struck: Sentence ids of any classes; ids of no sentence of this commit are ignored.
        """
        return self._without(struck)[1]

    def best(self, top: int = 5, struck: Collection[str] = ()) -> list[ExaminedClass]:
        """Return the `top` best classes, best first, without their sentences; `struck` as for `scores`."""
        model, fused = self._without(struck)
        best = fused.probabilities[0].topk(min(top, len(model.class_ids))).indices
        return [self._class(class_id, struck) for class_id in model.class_ids[best].tolist()]

    def look(self, name: str, struck: Collection[str] = ()) -> ExaminedClass:
        """Return one class with all its sentences; `struck` as for `scores`.

        Raises:
            UnknownClassError: If there is no such class.
            MissingStepError: If it has no anchors.
        """
        class_id = self.model.classes.lookup(name)
        if class_id not in self.model.explainer.places:
            raise MissingStepError(
                f"class {name!r} has no anchor sentence", "Select again: vlltr embed, then vlltr select"
            )
        return self._class(class_id, struck, sentences=True)

    def compare(self, first: str, second: str, struck: Collection[str] = ()) -> Comparison:
        """Compare the class `first` with `second`; `struck` as for `scores`.

        Raises:
            UnknownClassError: If there is no such class.
            MissingStepError: If one has no anchors.
            InputError: If both are the same class.
        """
        one = self.look(first, struck)
        other = self.look(second, struck)
        if one.class_id == other.class_id:
            raise InputError(f"class {first!r} cannot be compared with itself", "Choose another one.")
        return Comparison(
            first=one,
            second=other,
            gap=one.text_score - other.text_score,
            for_first=_arguments(one),
            for_second=_arguments(other),
        )

    def _without(self, struck: Collection[str]) -> tuple[Model, FusedScores]:
        """Return the model without some sentences, and its scores; those of the last question are kept."""
        gone = frozenset(struck)
        if gone != self._last[0]:
            model = _model_without(self.model, gone) if gone else self.model
            fused = model.exhaustive(self.feature[None]) if gone else self._whole
            self._last = (gone, model, fused)
        return self._last[1:]

    def _class(self, class_id: int, struck: Collection[str], sentences: bool = False) -> ExaminedClass:
        before, told = self._score(self.model, self._whole, class_id)
        now, left = self._score(*self._without(struck), class_id)
        return ExaminedClass(
            class_id=class_id,
            name=now.name,
            probability=now.probability,
            image_part=now.image_part,
            text_part=now.text_part,
            cosine=now.cosine,
            unit=now.unit,
            prior_part=now.prior_part,
            text_score=now.text_score,
            probability_before=before.probability,
            cosine_before=before.cosine,
            text_score_before=before.text_score,
            sentences=tuple(_examined(told, left)) if sentences else (),
        )

    def _score(
        self, model: Model, fused: FusedScores, class_id: int
    ) -> tuple[ClassScore, dict[str, SentenceShare]]:
        """Return a model's score of a class, zero if nothing is known of it, and its sentences by id and share."""
        column = class_positions(model.class_ids, torch.tensor([[class_id]]))
        if int(column) < 0:
            unit = "log-odds" if model.fusion.rule != "paper" else "probability"
            return ClassScore(class_id, model.names[class_id], 0.0, 0.0, 0.0, 0.0, unit=unit), {}
        score = model.class_scores(fused, column)[0][0]
        place = model.explainer.places.get(class_id)
        if place is None:
            return replace(score, cosine=0.0), {}
        found = model.explainer.explain(self.feature, place)
        shares = dict(model.explainer.by_share(found))
        return replace(score, cosine=found.cosine, text_score=found.score), shares


def _examined(
    told: Mapping[str, SentenceShare], left: Mapping[str, SentenceShare]
) -> Iterator[ExaminedSentence]:
    """Return a class's sentences in their order before, those that are left out among them, and then new ones."""
    for sentence_id, before in told.items():
        now = left.get(sentence_id)
        share = replace(before, share=0.0, percent=0.0) if now is None else replace(now, group=before.group)
        yield ExaminedSentence(**asdict(share), sentence_id=sentence_id, struck=now is None)
    for number, sentence_id in enumerate(left.keys() - told.keys(), len(told)):
        share = replace(left[sentence_id], group=number)
        yield ExaminedSentence(**asdict(share), sentence_id=sentence_id, struck=False)


def _model_without(model: Model, struck: frozenset[str]) -> Model:
    """Return the model as it is when some sentences have been removed, with the anchors that are selected then."""
    snapshot = model.state.snapshot
    gone = snapshot.table("sentences", ["class_id"], one_of("sentence_id", sorted(struck)))
    touched = numbers(gone, "class_id").unique()
    rows = snapshot.table("sentences", ["class_id", *TEXT_COLUMNS], one_of("class_id", touched.tolist()))
    rows = rows.filter(pc.invert(pc.is_in(rows["sentence_id"], pa.array(sorted(struck), pa.string()))))
    left = numbers(rows, "class_id").unique()
    bank: AnchorBank | None = None
    ids = list[str]()
    if len(left):
        config = snapshot.commit.info.select or snapshot.recipe.select
        bank, ids = anchors_without(snapshot, config, left, sentences=struck)
    found = replace(
        model,
        anchors=model.anchors.exchanged(touched, bank, ids),
        state=model.state.apart(
            class_images=model.state.class_images,
            read_texts=lambda: {**model.state.texts, **texts_of(rows)},
        ),
    )
    if model.log_prior is None:
        return found
    return replace(found, log_prior=model.log_prior[class_positions(model.class_ids, found.class_ids)])


def _arguments(one: ExaminedClass) -> tuple[ExaminedSentence, ...]:
    """Return the sentences that are not left out and have a positive effect, strongest first."""
    speaking = (sentence for sentence in one.sentences if sentence.effect > 0 and not sentence.struck)
    return tuple(sorted(speaking, key=lambda sentence: -sentence.effect))
