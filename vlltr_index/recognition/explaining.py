"""The sentences behind a model's text scores, as records: by share, those that say the same in one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.explanation import ClassExplanation, mean_explanation
from vlltr_index.heads.fusion import FusedScores, parts_of
from vlltr_index.recognition.in_words import numbered, template_groups
from vlltr_index.schemas.records import ClassScore, Neighbour, SentenceShare

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.recognition.anchors import Texts
    from vlltr_index.recognition.lazy import Lazy
    from vlltr_index.recognition.rules import FusionRule


class Explainer:
    """Returns scores as records, and explains text scores by anchor sentences; everything is on the CPU.

    Args:
        rule: The model's rule.
        texts: The anchors' texts by sentence id.
        names: Names of classes by class id.
    """

    def __init__(self, rule: FusionRule, texts: Lazy[Texts], names: Mapping[int, str]) -> None:
        self._rule = rule
        self._anchors = rule.known.anchors
        self._texts = texts
        self._names = names

    @cached_property
    def places(self) -> dict[int, int]:
        """Positions in the anchor bank by class id; a class without an anchor has none."""
        return {class_id: place for place, class_id in enumerate(self._anchors.bank.class_ids.tolist())}

    def class_scores(
        self, fused: FusedScores, positions: Tensor, columns: Tensor | None = None
    ) -> list[list[ClassScore]]:
        """Return the scores of each image's classes, without sentences.

        Args:
            fused: Scores of B images.
            positions: Int64 [B, K], which columns of `fused`.
            columns: Int64 [C_a], where `fused` was narrowed by `FusedScores.among`: the model's column of each.
        """
        known = self._rule.known
        classes = known.class_ids if columns is None else known.class_ids[columns]
        scale = float(known.saved.head.logit_scale.detach())
        with_text = torch.isin(classes, known.bank.class_ids)
        cosines = torch.where(with_text, fused.text_logits / scale, 0.0)
        chances = fused.probabilities.gather(1, positions)
        contributions = parts_of(fused, positions, self._rule.name)
        values = classes[positions], chances, *contributions, cosines.gather(1, positions)
        return [
            [self._class_score(int(number), *rest) for number, *rest in row]
            for row in torch.stack([v.double() for v in values], 2).tolist()
        ]

    def _class_score(
        self, class_id: int, probability: float, image: float, text: float, prior: float, cosine: float
    ) -> ClassScore:
        """Return one class's score of one image: its probability, the contributions to it, and the cosine."""
        without_images = class_id in self._text_only
        return ClassScore(
            class_id=class_id,
            name=self._names[class_id],
            probability=probability,
            image_part=image,
            text_part=text,
            cosine=self.shown_cosine(cosine),
            unit=self._rule.unit,
            prior_part=prior,
            without_images=without_images,
            unknown=without_images and self._rule.known.saved.texts_are_mute,
        )

    @cached_property
    def _text_only(self) -> set[int]:
        """Ids of the added classes without images, where the rule knows of them."""
        return set(self._rule.known.class_ids[self._rule.text_only].tolist())

    def shown_cosine(self, cosine: float) -> float | None:
        """Return a cosine as it is shown: None for blank anchors, which have none."""
        return None if self._anchors.bank.is_blank else cosine

    def explain(self, features: Tensor, place: int) -> ClassExplanation:
        """Explain one class's text score: under the rule `ours` by both parts that read text, else the text logit.

        Args:
            features: Float [M, D], unnormalised as the encoder gives them, of an image, or of those of a group, whose
                text score is their mean.
            place: The class's position in the bank.
        """
        return mean_explanation([self._rule.explain(feature, place) for feature in features])

    def shares(
        self, features: Tensor, class_id: int, groups: int | None
    ) -> tuple[ClassExplanation | None, tuple[SentenceShare, ...]]:
        """Return the explanation of a class's text score and its first groups of sentences; None, () without anchors.

        Args:
            features: As for `explain`.
            class_id: The class.
            groups: Number of groups; None: all.
        """
        if class_id not in self.places:
            return None, ()
        found = self.explain(features, self.places[class_id])
        ordered = self.by_share(found)
        first = list(dict.fromkeys(share.group for _, share in ordered))[:groups]
        return found, tuple(share for _, share in ordered if share.group in first)

    def with_sentences(self, score: ClassScore, features: Tensor, groups: int | None) -> ClassScore:
        """Return a score with the class's first groups of sentences, its text score and the exact cosine; None: all."""
        if groups == 0:
            return score
        found, shares = self.shares(features, score.class_id, groups)
        if found is None:
            return replace(score, text_score=0.0)
        cosine = None if score.cosine is None else found.cosine
        return replace(score, cosine=cosine, text_score=found.score, sentences=shares)

    def of_several(
        self, features: Tensor, chances: Mapping[int, float], groups: int
    ) -> tuple[SentenceShare, ...]:
        """Return the first groups of sentences of several classes, each weighted by its class's part of the chances.

        Args:
            features: As for `explain`.
            chances: Class id to its part, which add up to at most one.
            groups: Number of groups.
        """
        found: dict[tuple[int, int], list[SentenceShare]] = {}
        for class_id, part in chances.items():
            for share in self.shares(features, class_id, None)[1]:
                weighed = replace(share, percent=part * share.percent)
                found.setdefault((class_id, share.group), []).append(weighed)
        first = sorted(found.values(), key=lambda group: -sum(share.percent for share in group))[:groups]
        return tuple(replace(share, group=n) for n, group in enumerate(first) for share in group)

    def by_share(self, found: ClassExplanation, grouped: bool = True) -> list[tuple[str, SentenceShare]]:
        """List a class's sentences by id: groups by summed share, then by share, both descending.

        Unless `grouped` each is a group by itself, and the texts of all classes need not be compared.
        """
        first, last = self._anchors.bank.bounds[found.position : found.position + 2]
        texts = self._texts.value
        values = torch.stack([found.attention, found.shares, found.effects, found.percents], 1).tolist()
        ids = self._anchors.sentence_ids[first:last]
        groups = numbered(self._template_groups[first:last]) if grouped else range(last - first)
        sums = defaultdict[int, float](float)
        listed = []
        for sentence_id, group, (attention, share, effect, percent) in zip(ids, groups, values, strict=True):
            sums[group] += share
            record = SentenceShare(
                *texts[sentence_id],
                attention=attention,
                share=share,
                effect=effect,
                percent=percent,
                group=group,
            )
            listed.append((sentence_id, record))
        return sorted(listed, key=lambda one: (-sums[one[1].group], one[1].group, -one[1].share))

    @cached_property
    def _template_groups(self) -> list[Hashable]:
        """Group key of each anchor whose text is a template around its class's name, else None."""
        bank = self._anchors.bank
        texts = self._texts.value
        owners = bank.class_ids[bank.class_of_row].tolist()
        sentences = (texts[sentence_id][:2] for sentence_id in self._anchors.sentence_ids)
        return template_groups(
            ((owner, *one) for owner, one in zip(owners, sentences, strict=True)), self._names
        )


def nearest(feature: Tensor, rows: pa.Table, vectors: Tensor, count: int) -> tuple[Neighbour, ...]:
    """Return the images that are nearest to an image, at most `count`, by the cosine.

    Args:
        feature: Float [D], unnormalised as the encoder gives it.
        rows: Columns `image_id` and `uri` of N images.
        vectors: Their unit vectors [N, D].
        count: Number of images.
    """
    if not rows.num_rows:
        return ()
    best = (vectors @ F.normalize(feature.cpu(), dim=0)).topk(min(count, rows.num_rows))
    found = rows.take(best.indices.tolist()).to_pylist()
    return tuple(Neighbour(**row, cosine=c) for row, c in zip(found, best.values.tolist(), strict=True))
