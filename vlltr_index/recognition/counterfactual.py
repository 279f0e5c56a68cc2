"""Examine one image under one commit: its best classes, their sentences, comparisons, all with sentences left out.

Any sentences may be left out (`struck`). Then the answer is that which removing them would give: other sentences of the
class may be selected in their place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.anchors.selection import anchors_without
from vlltr_index.embedding.loading import numbers, with_readings
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.recognition.anchors import TEXT_COLUMNS, Texts, texts_of
from vlltr_index.recognition.lazy import Lazy
from vlltr_index.recognition.opening import no_index
from vlltr_index.schemas.records import ClassScore, SentenceShare
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.recognition.model import Model


_WITHOUT: WeakKeyDictionary[Model, tuple[frozenset[str], Model, dict[str, int]]] = WeakKeyDictionary()


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
        sentences: Its anchors and what is left out of them, by share with no sentence left out, then those that came in
            for these; empty unless requested.
        gone: Whether nothing is known of the class without what is left out: no image, and no other sentence.
    """

    text_score: float
    probability_before: float
    cosine_before: float | None
    text_score_before: float
    sentences: tuple[ExaminedSentence, ...] = ()
    gone: bool = False


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

        Raises:
            UsageError: If this is an exported folder, where nothing can be struck out.
            MissingStepError: If another sentence of the class has not been embedded.
        """
        return self._left(struck).fused

    def best(self, top: int = 5, struck: Collection[str] = ()) -> list[ExaminedClass]:
        """Return the `top` best classes, best first, without their sentences; `struck` as for `scores`."""
        left = self._left(struck)
        best = left.fused.probabilities[0].topk(min(top, len(left.model.class_ids))).indices
        return [self._class(class_id, left) for class_id in left.model.class_ids[best].tolist()]

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
        return self._class(class_id, self._left(struck), sentences=True)

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

    def _left(self, struck: Collection[str]) -> _Left:
        """Return what is left without some sentences."""
        if not struck:
            return _Left(self.model, self._whole, {})
        model, owners = _model_without(self.model, frozenset(struck))
        return _Left(model, model.exhaustive(self.feature[None]), owners)

    def _class(self, class_id: int, left: _Left, sentences: bool = False) -> ExaminedClass:
        before, told = self._score(self.model, self._whole, class_id, sentences)
        now, kept = self._score(left.model, left.fused, class_id, sentences)
        struck = {one: left.model.texts[one] for one, owner in left.struck.items() if owner == class_id}
        return ExaminedClass(
            class_id=class_id,
            name=now.name,
            probability=now.probability,
            image_part=now.image_part,
            text_part=now.text_part,
            cosine=now.cosine,
            unit=now.unit,
            prior_part=now.prior_part,
            text_score=now.text_score or 0.0,
            without_images=now.without_images,
            unknown=now.unknown,
            probability_before=before.probability,
            cosine_before=before.cosine,
            text_score_before=before.text_score or 0.0,
            sentences=tuple(_examined(told, kept, struck)) if sentences else (),
            gone=not bool((left.model.class_ids == class_id).any()),
        )

    def _score(
        self, model: Model, fused: FusedScores, class_id: int, sentences: bool
    ) -> tuple[ClassScore, dict[str, SentenceShare]]:
        """Return a model's score of a class, zero if nothing is known of it, and its sentences by id and share."""
        column = class_positions(model.class_ids, torch.tensor([[class_id]]))
        if int(column) < 0:
            cosine = model.explainer.shown_cosine(0.0)
            name = model.names[class_id]
            return ClassScore(class_id, name, 0.0, 0.0, 0.0, cosine, unit=model.rule.unit), {}
        score = model.explainer.class_scores(fused, column)[0][0]
        place = model.explainer.places.get(class_id)
        if place is None:
            return score, {}
        found = model.explainer.explain(self.feature[None], place)
        shares = model.explainer.by_share(found, grouped=model is self.model) if sentences else ()
        cosine = None if score.cosine is None else found.cosine
        return replace(score, cosine=cosine, text_score=found.score), dict(shares)


@dataclass(frozen=True, eq=False)
class _Left:
    """What is left without some sentences.

    Attributes:
        model: The model without them.
        fused: Its scores of the image.
        struck: The class of each of them.
    """

    model: Model
    fused: FusedScores
    struck: Mapping[str, int]


def _examined(
    told: Mapping[str, SentenceShare], left: Mapping[str, SentenceShare], struck: Texts
) -> Iterator[ExaminedSentence]:
    """Return a class's sentences: those before in their order, struck ones among them, and then new ones.

    What is no anchor any more though it was not struck is left out.
    """
    for sentence_id, before in told.items():
        now = left.get(sentence_id)
        if now is not None or sentence_id in struck:
            share = replace(now or replace(before, share=0.0, percent=0.0), group=before.group)
            yield ExaminedSentence(**asdict(share), sentence_id=sentence_id, struck=now is None)
    no_share = partial(SentenceShare, attention=0.0, share=0.0, effect=0.0, percent=0.0, group=0)
    new = {**left, **{one: no_share(*text) for one, text in struck.items()}}
    for number, sentence_id in enumerate((one for one in new if one not in told), len(told)):
        share = replace(new[sentence_id], group=number)
        yield ExaminedSentence(**asdict(share), sentence_id=sentence_id, struck=sentence_id in struck)


def _model_without(model: Model, struck: frozenset[str]) -> tuple[Model, dict[str, int]]:
    """Return the model with the anchors that are selected when some sentences are gone, and the class of each of these.

    The last result is kept.
    """
    kept = _WITHOUT.get(model)
    if kept is not None and kept[0] == struck:
        return kept[1:]
    snapshot = model.source
    if not isinstance(snapshot, Snapshot):
        what = "in an exported folder no sentence can be struck out: others may come in for it"
        raise UsageError(what, "Ask the workspace that it came from.")
    every = snapshot.table("sentences", ["class_id", *TEXT_COLUMNS])
    out = pc.is_in(every["sentence_id"], pa.array([one for one in struck if one.isascii()], pa.string()))
    gone = every.filter(out)
    owners = dict(zip(gone["sentence_id"].to_pylist(), gone["class_id"].to_pylist(), strict=True))
    touched = numbers(gone, "class_id").unique()
    of_touched = pc.is_in(every["class_id"], gone["class_id"].combine_chunks())
    left = numbers(every.filter(pc.and_(of_touched, pc.invert(out))), "class_id").unique()
    bank: AnchorBank | None = None
    ids = list[str]()
    if len(left):
        config = snapshot.commit.info.select or snapshot.recipe.select
        bank, ids = anchors_without(snapshot, config, left, sentences=frozenset(owners))
        bank = with_readings(snapshot, bank, ids)
    texts = texts_of(every.filter(of_touched))
    before = model.lazy_texts  # not the model, which `_WITHOUT` would keep
    anchors = model.anchors.exchanged(touched, bank, ids, [texts[one][0] for one in ids])
    found = replace(
        model.with_known(anchors=anchors),
        lazy_index=Lazy(no_index),
        lazy_texts=Lazy(lambda: {**before.value, **texts}),
    )
    if model.log_prior is not None:
        columns = class_positions(model.class_ids, found.class_ids)
        found = replace(found, log_prior=model.log_prior[columns])
    _WITHOUT[model] = struck, found, owners
    return found, owners


def _arguments(one: ExaminedClass) -> tuple[ExaminedSentence, ...]:
    """Return the sentences that are not left out and have a positive effect, strongest first."""
    speaking = (sentence for sentence in one.sentences if sentence.effect > 0 and not sentence.struck)
    return tuple(sorted(speaking, key=lambda sentence: -sentence.effect))
