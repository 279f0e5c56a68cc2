"""Examine one image under one commit: its best classes, their sentences, comparisons, all with sentences left out.

Any sentences may be left out (`struck`). Then the class's cosine is that of the remaining ones (`explain_class`), its
text logit is scale * cosine, and the probabilities of all classes are fused again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.schemas.records import ClassScore, SentenceShare
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.recognition.model import Model


@dataclass(frozen=True, slots=True)
class ExaminedSentence(SentenceShare):
    """An anchor sentence of a class with its share and effect; the share is zero if it is left out."""

    sentence_id: str
    struck: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedClass(ClassScore):
    """A class's score for the image; fields ending in `before` are its values with no sentence left out.

    Attributes:
        logit: scale * cosine, before the text's weight.
        probability_before: As `probability`.
        cosine_before: As `cosine`.
        logit_before: As `logit`.
        sentences: All its anchors, by share with no sentence left out; empty unless requested.
    """

    logit: float
    probability_before: float
    cosine_before: float
    logit_before: float
    sentences: tuple[ExaminedSentence, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two classes for one image: why the first and not the second.

    Attributes:
        first: The class argued for, with its sentences.
        second: The class argued against, with its sentences.
        gap: Cosine of the first minus cosine of the second.
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
        with torch.inference_mode():
            self._visual = model.image_side(feature[None])
            self._text = model.saved.head.text_logits(feature[None], model.bank)
        self._whole = self._fuse(self._text)

    @classmethod
    def of(cls, model: Model, image: str | Path | bytes) -> Examination:
        """Examine an image file, or its bytes.

        Raises:
            InputError: If it cannot be read.
        """
        return cls(model, model.feature(image))

    def scores(self, struck: Collection[str] = ()) -> FusedScores:
        """Return fused scores of all classes, in rows of one, with the sentences `struck` left out.

        Args:
            struck: Sentence ids of any classes; ids that are no anchors of this commit are ignored.
        """
        text = self._text.clone()
        for place, sentences in self._places(struck).items():
            text[0, place] = self.model.explainer.explain(self.feature, place, sentences).logit
        return self._fuse(text)

    def best(self, top: int = 5, struck: Collection[str] = ()) -> list[ExaminedClass]:
        """Return the `top` best classes, best first, without their sentences; `struck` as for `scores`."""
        fused = self.scores(struck)
        left_out = self._places(struck)
        ids = self.model.class_ids
        best = fused.probabilities[0].topk(min(top, len(ids))).indices
        return [self._class(class_id, fused, left_out) for class_id in ids[best].tolist()]

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
        return self._class(class_id, self.scores(struck), self._places(struck), sentences=True)

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
            gap=one.cosine - other.cosine,
            for_first=_arguments(one),
            for_second=_arguments(other),
        )

    def _fuse(self, text: Tensor) -> FusedScores:
        with torch.inference_mode():
            return self.model.fuse(self._visual, self.model.whole(text))

    def _places(self, struck: Collection[str]) -> Mapping[int, Sequence[int]]:
        """Return the sentences left out, by position of their class, as places among its anchors."""
        bank = self.model.bank
        rows = self.model.explainer.rows
        found = dict[int, list[int]]()
        for row in sorted(rows[sentence_id] for sentence_id in struck if sentence_id in rows):
            position = int(bank.class_of_row[row])
            found.setdefault(position, []).append(row - bank.bounds[position])
        return found

    def _class(
        self,
        class_id: int,
        fused: FusedScores,
        left_out: Mapping[int, Sequence[int]],
        sentences: bool = False,
    ) -> ExaminedClass:
        model = self.model
        column = class_positions(model.class_ids, torch.tensor([[class_id]]))
        score = model.class_scores(fused, column)[0][0]
        logits = (0.0, 0.0)
        cosines = (0.0, 0.0)
        examined = list[ExaminedSentence]()
        place = model.explainer.places.get(class_id)
        if place is not None:
            struck = left_out.get(place, ())
            before = model.explainer.explain(self.feature, place)
            now = model.explainer.explain(self.feature, place, struck)
            cosines = (now.cosine, before.cosine)
            logits = (now.logit, before.logit)
            if sentences:
                shares = {m: asdict(share) for m, _, share in model.explainer.by_share(now)}
                for m, sentence_id, _ in model.explainer.by_share(before):
                    examined.append(
                        ExaminedSentence(**shares[m], sentence_id=sentence_id, struck=m in struck)
                    )
        return ExaminedClass(
            class_id=class_id,
            name=score.name,
            probability=score.probability,
            image_part=score.image_part,
            text_part=score.text_part,
            cosine=cosines[0],
            logit=logits[0],
            probability_before=float(self._whole.probabilities[0, column]),
            cosine_before=cosines[1],
            logit_before=logits[1],
            unit=score.unit,
            prior_part=score.prior_part,
            sentences=tuple(examined),
        )


def _arguments(one: ExaminedClass) -> tuple[ExaminedSentence, ...]:
    """Return the sentences that are not left out and have a positive effect, strongest first."""
    speaking = (sentence for sentence in one.sentences if sentence.effect > 0 and not sentence.struck)
    return tuple(sorted(speaking, key=lambda sentence: -sentence.effect))
