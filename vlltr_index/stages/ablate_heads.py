"""What the ablation puts in the place of the language-guided head: a linear layer, or votes of sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.baselines import (
    HeadTraining,
    best_setting,
    fc_head,
    hold_back,
    knn_sentence_logits,
    linear_logits,
)
from vlltr_index.errors import MissingStepError
from vlltr_index.loading import ImageSet, class_positions, image_set
from vlltr_index.metrics import AccuracyReport, accuracy_report
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.stages.evaluate import training_counts

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["fc_report", "knn_report"]


@dataclass(frozen=True)
class _Chosen:
    """The images that settings are chosen on: split val, or held-back training images where there is none."""

    features: Tensor
    labels: Tensor
    kept: Tensor  # bool [N], the training images that may be trained on meanwhile


def fc_report(workspace: Workspace, split: str, progress: Progress | None = None) -> AccuracyReport:
    """Accuracy of a linear layer trained on the stored vectors, with the recipe's numbers of stage 2.

    The learning rate is the one of the recipe's `baselines.lrs` that does best on split val.
    """
    snapshot, recipe = workspace.snapshot(), workspace.recipe
    class_ids = _class_ids(snapshot)
    first = image_set(snapshot, "train")
    rest = [image_set(snapshot, "train", v, recipe.lgr.augment).features for v in range(1, recipe.lgr.views)]
    views, labels = torch.stack([first.features, *rest]), class_positions(class_ids, first.class_ids)
    chosen = _choosing(workspace, snapshot, class_ids, first, labels)

    def train(lr: float, rows: Tensor) -> Callable[[Tensor], Tensor]:
        training = HeadTraining(
            epochs=recipe.lgr.epochs,
            batch_size=recipe.lgr.batch_size,
            lr=lr,
            sampler_power=recipe.lgr.sampler_power,
            logit_adjustment=recipe.lgr.logit_adjustment,
            seed=recipe.lgr.seed,
        )
        weight, bias = fc_head(views[:, rows], labels[rows], len(class_ids), training, progress)
        return lambda features: linear_logits(features, weight, bias)

    lr, _ = best_setting(
        recipe.baselines.lrs, lambda value: train(value, chosen.kept)(chosen.features), chosen.labels
    )
    return _report(snapshot, class_ids, split, train(lr, torch.ones(len(labels), dtype=torch.bool)))


def knn_report(workspace: Workspace, split: str, progress: Progress | None = None) -> AccuracyReport:
    """Accuracy of the votes of the k sentences nearest to an image, of all classes' sentences.

    k is the one of the recipe's `baselines.neighbours` that does best on split val.
    """
    snapshot = workspace.snapshot()
    class_ids = _class_ids(snapshot)
    assert snapshot.commit is not None
    assert snapshot.commit.text_fp is not None
    rows = snapshot.table("sentences", ["sentence_id", "text_hash", "class_id"]).sort_by("sentence_id")
    owner = class_positions(class_ids, torch.from_numpy(rows["class_id"].to_numpy().copy()).long())
    table = sentence_vectors_name(snapshot.commit.text_fp)
    _, vectors = snapshot.store.vectors(table, "text_hash", rows["text_hash"].to_pylist())
    vectors, owner = vectors[owner >= 0], owner[owner >= 0]
    first = image_set(snapshot, "train")
    labels = class_positions(class_ids, first.class_ids)
    chosen = _choosing(workspace, snapshot, class_ids, first, labels)

    def vote(features: Tensor, k: int) -> Tensor:
        return knn_sentence_logits(features, vectors, owner, len(class_ids), k)

    k, _ = best_setting(
        workspace.recipe.baselines.neighbours, lambda value: vote(chosen.features, value), chosen.labels
    )
    if progress:
        progress(f"the nearest {k} sentences", 0, None)
    return _report(snapshot, class_ids, split, lambda features: vote(features, k))


def _class_ids(snapshot: Snapshot) -> Tensor:
    """Ids of the classes in use, int64 [C], ascending."""
    rows = snapshot.table("classes", ["class_id", "retired_at"]).to_pylist()
    return torch.tensor(sorted(r["class_id"] for r in rows if r["retired_at"] is None))


def _choosing(
    workspace: Workspace, snapshot: Snapshot, class_ids: Tensor, train: ImageSet, labels: Tensor
) -> _Chosen:
    every = torch.ones(len(labels), dtype=torch.bool)
    try:
        val = image_set(snapshot, "val")
    except MissingStepError:
        held = hold_back(labels, workspace.recipe.baselines.held_back)
        if not bool(held.any()):
            held = every
        return _Chosen(train.features[held], labels[held], ~held if not bool(held.all()) else every)
    return _Chosen(val.features, class_positions(class_ids, val.class_ids), every)


def _report(
    snapshot: Snapshot, class_ids: Tensor, split: str, score: Callable[[Tensor], Tensor]
) -> AccuracyReport:
    data = image_set(snapshot, split)
    logits = score(data.features)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    labels = class_positions(class_ids, data.class_ids)
    return accuracy_report(best, labels, training_counts(snapshot, class_ids), resamples=1000)
