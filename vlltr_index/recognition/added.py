"""What added classes take from the others, by the models of the folds: offsets, and accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.heads.offsets import class_offsets
from vlltr_index.heads.units import number_names
from vlltr_index.heads.weighing import balanced_shares
from vlltr_index.recognition.folds import open_folds
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.recognition.folds import Folds
    from vlltr_index.recognition.model import Model

# So many images are scored as keep images times classes below _SCORES, within these bounds.
_SCORES = 4_000_000
_FEWEST = 300
_MOST = 1000
_MOST_CLASSES = 10_000  # of more, reading the anchors that a fold's images did not select takes too long
_BATCH = 256


@dataclass(frozen=True, eq=False)
class FoldScores:
    """Scores of N held-out images, each by the model of its fold.

    Attributes:
        class_ids: Int64 [C], the class of each column.
        base: Bool [C], base classes.
        scores: Float64 [N, C], z without offsets.
        image_ids: The images.
        labels: Int64 [N], the class id of each image.
        same: Bool [N], rows that offsets are computed from, see `Fold`.
        groups: Int64 [N].
    """

    class_ids: Tensor
    base: Tensor
    scores: Tensor
    image_ids: list[str]
    labels: Tensor
    same: Tensor
    groups: Tensor

    def offsets(self) -> dict[int, float]:
        """Compute the offsets of added classes by their ids, see `heads.offsets`; those of 0 are left out."""
        added = (~self.base).nonzero()[:, 0]
        if not len(added):
            return {}
        base = self.base.nonzero()[:, 0]
        rows = self.same & torch.isin(self.labels, self.class_ids[base])
        found = torch.zeros(len(added), dtype=torch.float64)
        if bool(rows.any()):
            scores = self.scores[rows]
            best, column = scores[:, base].max(1)
            labels = self.labels[rows]
            right = self.class_ids[base[column]] == labels
            shares = balanced_shares(labels, self.groups[rows])
            margins = (best[:, None] - scores[:, added])[right]
            found = class_offsets(margins, shares[right], self.groups[rows][right])
        pairs = zip(self.class_ids[added].tolist(), found.tolist(), strict=True)
        return {class_id: offset for class_id, offset in pairs if offset}

    def answers(self, among: Tensor, offsets: Mapping[int, float]) -> Tensor:
        """Return the class id of each image's answer among the classes int64 [K], int64 [N], with some offsets."""
        columns = class_positions(self.class_ids, among)
        offset = torch.tensor([offsets.get(i, 0.0) for i in among.tolist()], dtype=torch.float64)
        best: Tensor = among[(self.scores[:, columns] + offset).argmax(1)]
        return best


def fold_scores(model: Model, folds: Folds | None = None) -> FoldScores | None:
    """Score the images of the folds, as many as are needed; None if no image is held out.

    Args:
        model: The model.
        folds: Those of its head; None: as its commit has them.
    """
    if model.saved.parts is None:
        return None
    folds = folds or open_folds(model.snapshot)
    if folds is None:
        return None
    most = max(_FEWEST, min(_MOST, _SCORES // max(1, len(model.class_ids))))
    each = -(-most // folds.number)
    scores, labels, same = list[Tensor](), list[Tensor](), list[Tensor]()
    groups, ids = list[str](), list[str]()
    for number in range(folds.number):
        fold = folds.open(model, number, own_anchors=len(model.class_ids) <= _MOST_CLASSES)
        if not fold.image_ids:
            continue
        # Ordered by ids, which are hashes, so that the first ones are a random sample.
        judge = replace(fold.model, offsets={})
        columns = class_positions(judge.class_ids, model.class_ids)
        features = fold.features[:each]
        whole = torch.full((len(features), len(columns)), -torch.inf, dtype=torch.float64)
        whole[:, columns >= 0] = log_scores(judge, features)[:, columns[columns >= 0]]
        scores.append(whole)
        labels.append(fold.class_ids[:each])
        same.append(fold.same[:each])
        groups += fold.units[:each]
        ids += fold.image_ids[:each]
    if not scores:
        return None
    return FoldScores(
        class_ids=model.class_ids,
        base=model.trained,
        scores=torch.cat(scores),
        image_ids=ids,
        labels=torch.cat(labels),
        same=torch.cat(same),
        groups=number_names(groups),
    )


@torch.inference_mode()
def log_scores(judge: Model, features: Tensor) -> Tensor:
    """Return z of features, float64 [N, C], for a model without offsets."""
    rule = judge.rule
    found = []
    for some in features.split(_BATCH):
        image = rule.visual_scores(some)
        scores = image.scores
        if rule.attends:
            scores = rule.fuse(image, judge.text_logits(some)).log_scores
        found.append(scores.double())
    return torch.cat(found)


def added_offsets(model: Model, folds: Folds) -> dict[int, float]:
    """Compute the offsets of a model's added classes by their ids; those of 0 are left out."""
    if bool(model.trained.all()):
        return {}
    found = fold_scores(model, folds)
    return {} if found is None else found.offsets()
