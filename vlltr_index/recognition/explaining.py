"""The sentences behind a model's text scores, as records: by share, those that say the same in one group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.explanation import ClassExplanation, explain_class
from vlltr_index.recognition.in_words import numbered, template_groups
from vlltr_index.schemas.records import ClassScore, Neighbour, SentenceShare

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.heads.lgr import LGRHead
    from vlltr_index.recognition.state import Anchors, Texts


class Explainer:
    """Explains text scores by anchor sentences; everything is on the CPU.

    Args:
        head: The head.
        anchors: The anchors.
        texts: Returns the anchors' texts by sentence id.
        names: Names of classes by class id.
    """

    def __init__(
        self, head: LGRHead, anchors: Anchors, texts: Callable[[], Texts], names: Mapping[int, str]
    ) -> None:
        self._head = head
        self._anchors = anchors
        self._texts = texts
        self._names = names

    @cached_property
    def places(self) -> dict[int, int]:
        """Positions in the anchor bank by class id; a class without an anchor has none."""
        return {class_id: place for place, class_id in enumerate(self._anchors.bank.class_ids.tolist())}

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows among all anchors by sentence id."""
        return {sentence_id: row for row, sentence_id in enumerate(self._anchors.sentence_ids)}

    def explain(self, feature: Tensor, place: int, struck: Sequence[int] = ()) -> ClassExplanation:
        """Explain one class's text score, see `explain_class`.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            place: The class's position in the bank.
            struck: Sentences that are left out, by their place among the class's anchors.
        """
        return explain_class(self._head, self._anchors.bank, place, feature, struck=struck)

    def shares(
        self, feature: Tensor, class_id: int, groups: int | None
    ) -> tuple[float, tuple[SentenceShare, ...]]:
        """Return an image's cosine with a class's text and its first groups of sentences; 0 and () without anchors.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            class_id: The class.
            groups: Number of groups; None: all.
        """
        if class_id not in self.places:
            return 0.0, ()
        found = self.explain(feature, self.places[class_id])
        ordered = self.by_share(found)
        first = list(dict.fromkeys(share.group for _, _, share in ordered))[:groups]
        return float(found.cosine), tuple(share for _, _, share in ordered if share.group in first)

    def with_sentences(self, score: ClassScore, feature: Tensor, groups: int | None) -> ClassScore:
        """Return a score with the class's first groups of sentences and the exact cosine; None: all groups."""
        if groups == 0:
            return score
        cosine, shares = self.shares(feature, score.class_id, groups)
        return replace(score, cosine=cosine, sentences=shares)

    def of_several(
        self, feature: Tensor, chances: Mapping[int, float], groups: int
    ) -> tuple[SentenceShare, ...]:
        """Return the first groups of sentences of several classes, each weighted by its class's part of the chances.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            chances: Class id to its part, which add up to at most one.
            groups: Number of groups.
        """
        found: dict[tuple[int, int], list[SentenceShare]] = {}
        for class_id, part in chances.items():
            for share in self.shares(feature, class_id, None)[1]:
                weighed = replace(share, percent=part * share.percent)
                found.setdefault((class_id, share.group), []).append(weighed)
        first = sorted(found.values(), key=lambda group: -sum(share.percent for share in group))[:groups]
        return tuple(replace(share, group=n) for n, group in enumerate(first) for share in group)

    def by_share(self, found: ClassExplanation) -> list[tuple[int, str, SentenceShare]]:
        """List a class's sentences as (place, id, record): groups by summed share, then by share, both descending."""
        first, last = self._anchors.bank.bounds[found.position : found.position + 2]
        texts = self._texts()
        groups = numbered(self._template_groups[first:last])
        shares_of = []
        percents = found.percents
        for m, sentence_id in enumerate(self._anchors.sentence_ids[first:last]):
            share = SentenceShare(
                *texts[sentence_id],
                attention=float(found.attention[m]),
                share=float(found.shares[m]),
                effect=float(found.effects[m]),
                percent=float(percents[m]),
                group=groups[m],
            )
            shares_of.append((m, sentence_id, share))
        sums = (
            torch.zeros(len(shares_of))
            .double()
            .index_add(0, torch.tensor(groups), found.shares.cpu())
            .tolist()
        )
        return sorted(shares_of, key=lambda one: (-sums[one[2].group], one[2].group, -one[2].share))

    @cached_property
    def _template_groups(self) -> list[Hashable]:
        """Group key of each anchor whose text is a template around its class's name, else None."""
        bank = self._anchors.bank
        texts = self._texts()
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
