"""What a trained workspace's stored vectors say of images without any text: its own visual parts, and simple rules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlltr_index.embedding.loading import image_set, image_units
from vlltr_index.evaluation.rules import class_means
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.fusion import PartWeights, VisualScores, visual_scores
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.moments import class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.units import count_units
from vlltr_index.heads.weighing import fit_factors, image_weights
from vlltr_index.pipelines.train_lgr import contents_of
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.store.holdout import read_held_out
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import cosine_logits, unit_rows
from vlltr_index.train.stage_two import fit_stage_two
from vlltr_index.train.training_set import TrainingSet

__all__ = [
    "WHOLE",
    "held_out",
    "rows_without_text",
    "training_data",
    "without_branch",
]

GENERATIVE = "generative without text"
MEANS = "class means"
DISCRIMINANT = "shrunk discriminant"
WHOLE = f"linear + {GENERATIVE}"


@torch.inference_mode()
def without_branch(scorer: Model, features: Tensor) -> Tensor:
    """Probabilities [N, C] of features [N, D] without the text branch; texts still give prior means."""
    return torch.cat([scorer.rule.visual_scores(part).scores.softmax(1) for part in features.split(512)])


def rows_without_text(
    data: TrainingSet, scorer: Model, features: Tensor
) -> tuple[dict[str, Tensor], RuleParameters]:
    """Scores [N, C] of features [N, D] in the scorer's columns by each rule, and the parts of the row `WHOLE`.

    The linear layer is the head's. The generative model is fitted anew with prototypes of zero, and weighed beside it
    as `vlltr train lgr` does. In the other products both sides have the same spread over the classes, taken from the
    images that stage 1 did not see. Classes without a row in the linear layer are added classes without an offset.
    """
    assert data.classes == len(scorer.class_ids), "classes were added after training"
    plain = data.features[0]
    trained = scorer.trained
    counts, sums = class_sums(unit_rows(plain), data.labels, data.classes, data.weights)
    parts = fit_stage_two(data, LGRConfig(), head=_with_rows_for_all(scorer)).parts
    assert parts is not None
    model = PLDA(parts.shared, counts, sums, data.prototypes)
    means = class_means(plain, data.labels, data.classes)

    @torch.inference_mode()
    def said(some: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return scorer.rule.linear_logits(some).double(), {
            GENERATIVE: model.log_likelihoods(unit_rows(some)).double(),
            MEANS: cosine_logits(some, means).double(),
            DISCRIMINANT: discriminant(model, unit_rows(some)),
        }

    linear, rows = said(features)
    rows[WHOLE] = _weighted_visual(parts.weights, rows[GENERATIVE], linear, trained).scores
    images, labels, each = held_out(data, trained)
    held_linear, held = said(images)
    for name, short in ((MEANS, MEANS), (DISCRIMINANT, "discriminant")):
        of_rule, of_linear = fit_factors(
            [held[name][:, trained], held_linear[:, trained]], None, labels, each
        )
        weights = PartWeights(image=of_linear, generative=of_rule, text=0.0)
        rows[f"linear + {short}"] = _weighted_visual(weights, rows[name], linear, trained).scores
    return rows, parts


def _weighted_visual(
    weights: PartWeights, generative: Tensor, linear: Tensor, trained: Tensor
) -> VisualScores:
    """Fuse scores [N, C] of the generative model, or of a rule in its place, with the linear layer's, [N, C].

    Args:
        weights: The weights of both.
        generative: Float [N, C].
        linear: Float [N, C]; only the columns of `trained` count.
        trained: Bool [C], the classes with a row in the linear layer.
    """
    base = trained.nonzero()[:, 0]
    likely = weights.generative * generative
    offsets = torch.zeros(len(trained))
    return visual_scores(likely, likely, weights.image * linear[:, base], base, offsets, weights.combined)


def held_out(data: TrainingSet, trained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [M, D] of the images that stage 1 did not see, positions among the classes that it saw, and weights."""
    labels = (trained.long().cumsum(0) - 1)[data.labels[data.unseen]]
    counts = count_units(data.labels, data.observations, data.classes)
    weights = image_weights(labels, counts[trained], data.observations[data.unseen])
    return data.features[0, data.unseen], labels, weights


def _with_rows_for_all(scorer: Model) -> LGRHead:
    """A head with the scorer's visual rows, in its columns; zeros for a class without one."""
    layer = scorer.saved.head.visual_head
    assert isinstance(layer, nn.Linear)
    whole = LGRHead(scorer.saved.head.dim, len(scorer.class_ids)).eval()
    assert isinstance(whole.visual_head, nn.Linear)
    with torch.no_grad():
        for target, rows in ((whole.visual_head.weight, layer.weight), (whole.visual_head.bias, layer.bias)):
            target.zero_()
            target[scorer.trained] = rows
    return whole


def discriminant(model: PLDA, features: Tensor) -> Tensor:
    """Fisher's linear discriminant with the model's shrunk covariance; float64 [N, C] of features [N, D]."""
    shared = model.shared
    means = (model.sums / model.counts[:, None] - shared.centre) @ shared.basis
    return (features.double() - shared.centre) @ shared.basis @ means.T - 0.5 * means.square().sum(1)


def training_data(workspace: Workspace, snapshot: Snapshot) -> TrainingSet:
    """The stored vectors of the training images, in all views, with no sentence for any class."""
    commit = snapshot.commit
    recipe = workspace.recipe.lgr
    assert commit.checkpoint is not None
    first = image_set(snapshot, "train")
    rest = [image_set(snapshot, "train", view, recipe.augment).features for view in range(1, recipe.views)]
    class_ids, labels = torch.unique(first.class_ids, return_inverse=True)
    held = read_held_out(workspace.objects.path("checkpoints", commit.checkpoint))
    none = torch.empty(0, dtype=torch.int64)
    dim = first.features.shape[1]
    empty = AnchorBank(torch.empty(0, dim), none.new_zeros(1), none, none, torch.empty(0))
    return TrainingSet(
        features=torch.stack([first.features, *rest]),
        labels=labels,
        bank=empty,
        places=torch.full_like(class_ids, -1),
        units=image_units(snapshot, first.image_ids, first.class_ids, first.features),
        keys=contents_of(snapshot, first.image_ids),
        unseen=torch.tensor([held.has(image) for image in first.image_ids]),
        unseen_classes=torch.tensor([i in held.classes for i in class_ids.tolist()]),
        visual_init=None,
        logit_scale=commit.logit_scale,
    )
