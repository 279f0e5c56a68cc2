"""One image under one commit, looked at from all sides: its best classes, their sentences, two classes compared.

Any sentences may be struck out beforehand. Then the class's cosine is that of what is left (`explain_class`), its
text logit is scale * cosine, and the probabilities of all classes are fused anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.heads.explanation import ClassExplanation, contrast, explain_class
from vlltr_index.heads.fusion import parts_of
from vlltr_index.schemas.records import ClassScore, SentenceShare
from vlltr_index.tensors import check_vector

if TYPE_CHECKING:
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.recognition.predictor import Answers

__all__ = ["Comparison", "Examination", "ExaminedClass", "ExaminedSentence"]


@dataclass(frozen=True, slots=True)
class ExaminedSentence(SentenceShare):
    """An anchor sentence of a class, and what it does for the image; a share is zero where it is struck out."""

    sentence_id: str
    struck: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedClass(ClassScore):
    """A class's score for the image; the fields with `before` are what it had with nothing struck out.

    Attributes:
        logit: scale * cosine, before the text's weight.
        probability_before: As `probability`.
        cosine_before: As `cosine`.
        logit_before: As `logit`.
        sentences: All its anchors, by share with nothing struck out; empty where they were not asked for.
    """

    logit: float
    probability_before: float
    cosine_before: float
    logit_before: float
    sentences: tuple[ExaminedSentence, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Why one class and not another.

    Attributes:
        first: The class argued for, with its sentences.
        second: The class argued against, with its sentences.
        gap: Cosine of the first less cosine of the second.
        for_first: The first's sentences that widen the gap, strongest first.
        for_second: The second's sentences that narrow it, strongest first.
    """

    first: ExaminedClass
    second: ExaminedClass
    gap: float
    for_first: tuple[ExaminedSentence, ...]
    for_second: tuple[ExaminedSentence, ...]


class Examination:
    """One image under one commit; it never changes, and every class is scored exactly.

    Args:
        answers: The commit's.
        feature: Float [D], unnormalised as the commit's encoder gives it.

    Raises:
        InputError: If the feature has another shape.
    """

    def __init__(self, answers: Answers, feature: Tensor) -> None:
        scorer = answers.scorer
        check_vector("feature", feature, scorer.bank.dim)
        self.answers, self.feature = answers, feature
        with torch.inference_mode():
            self._visual = scorer.image_side(feature[None])
            self._text = scorer.saved.head.text_logits(feature[None], scorer.bank)
        self._whole = self._fuse(self._text)

    @classmethod
    def of(cls, answers: Answers, image: str | Path | bytes) -> Examination:
        """Look at an image file, or its bytes.

        Raises:
            InputError: If it cannot be read.
        """
        return cls(answers, answers.feature(image))

    def scores(self, struck: Collection[str] = ()) -> FusedScores:
        """Fused scores of all classes, rows of one, without the sentences that are struck out.

        Args:
            struck: Sentence ids of any classes; those that are no anchors of this commit are passed over.
        """
        left_out = self._places(struck)
        if not left_out:
            return self._whole
        text = self._text.clone()
        for place, sentences in left_out.items():
            text[0, place] = self._explain(place, sentences).logit
        return self._fuse(text)

    def best(self, top: int = 5, struck: Collection[str] = ()) -> list[ExaminedClass]:
        """The `top` best classes, best first, without their sentences; `struck` as for `scores`."""
        fused, left_out = self.scores(struck), self._places(struck)
        probabilities, ids = fused.probabilities[0], self.answers.scorer.class_ids
        best = ids[probabilities.topk(min(top, len(probabilities))).indices].tolist()
        places = {c: n for n, c in enumerate(self.answers.scorer.bank.class_ids.tolist())}
        found = {c: self._explain(places[c], left_out.get(places[c], ())) for c in best if c in places}
        return [self._class(c, fused, found.get(c), ()) for c in best]

    def look(self, name: str, struck: Collection[str] = ()) -> ExaminedClass:
        """One class with all its sentences; `struck` as for `scores`.

        Raises:
            UnknownClassError: If there is no such class.
            MissingStepError: If it has no anchors.
        """
        class_id, place = self._place(name)
        left_out = self._places(struck).get(place, ())
        found = self._explain(place, left_out)
        return self._class(class_id, self.scores(struck), found, left_out, sentences=True)

    def compare(self, first: str, second: str, struck: Collection[str] = ()) -> Comparison:
        """Why the class `first` and not `second`; `struck` as for `scores`.

        Raises:
            UnknownClassError: If there is no such class.
            MissingStepError: If one has no anchors.
            InputError: If both are the same class.
        """
        (first_id, one), (second_id, other) = self._place(first), self._place(second)
        left_out = self._places(struck)
        if one == other:
            raise InputError(f"class {first!r} cannot be compared with itself", "Choose another one.")
        scorer, fused = self.answers.scorer, self.scores(struck)
        found = contrast(scorer.saved.head, scorer.bank, one, other, self.feature, left_out)
        classes, arguments = [], []
        for class_id, side, chosen in (
            (first_id, found.first, found.for_first),
            (second_id, found.second, found.against_first),
        ):
            out = left_out.get(side.position, ())
            classes.append(self._class(class_id, fused, side, out, sentences=True))
            arguments.append(self._sentences(side, chosen.tolist(), out))
        return Comparison(classes[0], classes[1], found.gap, arguments[0], arguments[1])

    def _fuse(self, text: Tensor) -> FusedScores:
        with torch.inference_mode():
            return self.answers.scorer.fuse(self._visual, self.answers.scorer.whole(text))

    def _place(self, name: str) -> tuple[int, int]:
        """A class's number, and its position among the anchors."""
        class_id = self.answers.classes.lookup(name)
        place = (self.answers.scorer.bank.class_ids == class_id).nonzero()[:, 0].tolist()
        if not place:
            raise MissingStepError(
                f"class {name!r} has no anchor sentence", "Select again: vlltr embed, then vlltr select"
            )
        return class_id, int(place[0])

    def _places(self, struck: Collection[str]) -> Mapping[int, tuple[int, ...]]:
        """Position of a class to its sentences that are struck out, by their place among its anchors."""
        if not struck:
            return {}
        bank, found = self.answers.scorer.bank, dict[int, tuple[int, ...]]()
        for row in sorted(self._rows[sentence_id] for sentence_id in frozenset(struck) & self._rows.keys()):
            position = int(bank.class_of_row[row])
            found[position] = (*found.get(position, ()), row - bank.bounds[position])
        return found

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Sentence id to its row among all anchors."""
        return {sentence_id: row for row, sentence_id in enumerate(self.answers.scorer.loaded.sentence_ids)}

    def _explain(self, position: int, struck: Sequence[int] = ()) -> ClassExplanation:
        scorer = self.answers.scorer
        return explain_class(scorer.saved.head, scorer.bank, position, self.feature, struck)

    def _class(
        self,
        class_id: int,
        fused: FusedScores,
        found: ClassExplanation | None,
        struck: Sequence[int],
        sentences: bool = False,
    ) -> ExaminedClass:
        """`found` is None for a class without a sentence."""
        scorer = self.answers.scorer
        whole = None if found is None else self._explain(found.position)
        column = int((scorer.class_ids == class_id).nonzero()[0, 0])
        parts = parts_of(fused, torch.tensor([[column]]), scorer.fusion.rule)
        image_part, text_part = (float(part) for part in parts)
        return ExaminedClass(
            class_id=class_id,
            name=self.answers.names[class_id],
            probability=float(fused.probabilities[0, column]),
            image_part=image_part,
            text_part=text_part,
            cosine=0.0 if found is None else found.cosine,
            logit=0.0 if found is None else found.logit,
            probability_before=float(self._whole.probabilities[0, column]),
            cosine_before=0.0 if whole is None else whole.cosine,
            logit_before=0.0 if whole is None else whole.logit,
            unit="probability" if scorer.fusion.rule == "paper" else "log-odds",
            sentences=self._sentences(found, self._order(whole), struck)
            if sentences and found and whole
            else (),
        )

    def _order(self, whole: ClassExplanation) -> list[int]:
        return [m for m, _, _ in self.answers.by_share(whole)]

    def _sentences(
        self, found: ClassExplanation, order: Sequence[int], struck: Sequence[int]
    ) -> tuple[ExaminedSentence, ...]:
        told = {m: (sentence_id, share) for m, sentence_id, share in self.answers.by_share(found)}
        return tuple(
            ExaminedSentence(**asdict(told[m][1]), sentence_id=told[m][0], struck=m in struck) for m in order
        )
