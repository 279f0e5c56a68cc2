"""The out-of-fold table: scores of images by models that were fitted without them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from vlltr_index.heads.configuration import SHRINKAGES, Configuration, OutOfFold, TextLevel
from vlltr_index.heads.cross_validation import held_out_parts, parts_of
from vlltr_index.heads.dealing import FOLDS, class_order, group_folds
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.rejection import fit_parts, fit_scores
from vlltr_index.heads.units import count_units
from vlltr_index.heads.weighing import image_weights, share_range
from vlltr_index.tensors import unit_rows
from vlltr_index.train.training_set import TrainingSet

_FEWEST_UNKNOWN = 30  # images of left-out classes below which no false-accept rate is reported
_MOST_LEFT_OUT = 100  # classes left out of a fold
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class FoldFit:
    """Models that were fitted without some images.

    Attributes:
        data: The training data, with anchors that were selected without these images.
        out: Bool [N], the images.
        models: The PLDA by shrinkage; the PLDA has all C classes.
        head: The head, trained without these images or untrained.
        linear: Whether its linear classifier takes part.
        steps: Steps after which the held-out loss of the head's training had converged; 0 without any training.
    """

    data: TrainingSet
    out: Tensor
    models: Mapping[float, PLDA]
    head: LGRHead
    linear: bool
    steps: int

    def model(self, configuration: Configuration) -> PLDA:
        """Return the PLDA of a configuration."""
        found = self.models[configuration.shrinkage]
        return found.without_text if configuration.level == TextLevel.NONE else found

    def terms(self, features: Tensor) -> dict[Hashable, Tensor]:
        """Score images of features [B, D]: float [B, C_b] for the base classes, on the CPU.

        Log-likelihoods have the name (shrinkage, whether the prior knows the texts), the others `text` and `linear`.
        """
        images = unit_rows(features.double())
        found = dict[Hashable, Tensor]()
        for shrinkage, model in self.models.items():
            found[shrinkage, False] = model.without_text.log_likelihoods(images)
            if self.data.has_text:
                found[shrinkage, True] = model.log_likelihoods(images)
        if self.data.reads_text:
            found["text"] = self.text_logits(features)
        if self.linear:
            found["linear"] = self.linear_logits(features)
        return {name: scores.cpu()[:, self.data.rows] for name, scores in found.items()}

    def text_logits(self, features: Tensor) -> Tensor:
        """Compute text logits [B, C]; a class without a sentence has the mean of the others."""
        logits = self.head.text_logits(features, self.data.bank)
        places = self.data.places.to(logits.device)
        positions = torch.where(places >= 0, places, 0)
        return torch.where(places >= 0, logits[:, positions], logits.mean(1, keepdim=True))

    def linear_logits(self, features: Tensor) -> Tensor:
        """Compute the logits of the linear classifier [B, C]; zeros for classes without a row in the head."""
        logits = self.head.visual_logits(features)
        rows = self.data.rows.to(logits.device) if logits.shape[1] < self.data.classes else slice(None)
        whole = logits.new_zeros(len(features), self.data.classes)
        whole[:, rows] = logits
        return whole


def images_held_out(data: TrainingSet, one_part: bool) -> list[Tensor]:
    """Return the images that each fold holds out, bool [N]: whole groups, but never the last images of a class.

    After a stage 1 that is the part which it did not see; none if it saw all images, for its encoder is too confident
    of these. Otherwise see `held_out_parts`.
    """
    if bool(data.unseen.any()):
        found = parts_of(data.labels, torch.where(data.unseen, 0, -1))
    elif data.visual_init is not None:
        return []
    else:
        found = held_out_parts(data.labels, data.units, data.keys, one_part)
    known = data.rows[data.labels]
    return [out & known for out in found if bool((out & known).any())]


def row_folds(data: TrainingSet, parts: list[Tensor]) -> Tensor:
    """Return the fold of each image, int64 [N], -1 for one that no part holds out; a single part is split into five."""
    fold = torch.full_like(data.labels, -1)
    for number, out in enumerate(parts):
        fold[out] = number
    if len(parts) == 1:
        held = parts[0].tolist()
        fold[parts[0]] = group_folds(list(compress(data.units, held)), list(compress(data.keys, held)), FOLDS)
    return fold


def fold_models(data: TrainingSet, out: Tensor) -> dict[float, PLDA]:
    """Fit the PLDA for each shrinkage without the images `out`, bool [N]."""
    moments = data.moments(~out & ~data.unseen_classes[data.labels])
    return {shrinkage: data.model(moments, shrinkage) for shrinkage in SHRINKAGES}


def out_of_fold(
    data: TrainingSet, parts: Sequence[Tensor], rows: Tensor, terms: Mapping[Hashable, Tensor]
) -> OutOfFold:
    """Return the table.

    Args:
        data: All training data.
        parts: The images that each fold holds out, bool [N].
        rows: Int64 [N], the fold of each image in the table, -1 for one that is not in it.
        terms: Scores of these images as `cross_validate` returns them, see `FoldFit.terms`.
    """
    known = data.rows
    places = torch.cat([(out & (rows >= 0)).nonzero()[:, 0] for out in parts])
    labels = (known.long().cumsum(0) - 1)[data.labels[places]]
    groups = data.observations[places]
    counts = count_units(data.labels, data.observations, data.classes)[known]
    known_texts = [False, True] if data.has_text else [False]
    return OutOfFold(
        labels=labels,
        folds=rows[places],
        groups=groups,
        weights=image_weights(labels, counts, groups),
        likelihoods={(k, told): terms[k, told] for k in SHRINKAGES for told in known_texts},
        text=terms.get("text"),
        linear=terms.get("linear"),
    )


def fit_of_rows(
    data: TrainingSet, folds: list[FoldFit], rows: Tensor, configuration: Configuration
) -> Tensor:
    """Return `rejection.fit_parts` of the images of the table, float [M, 2], in the order of `out_of_fold`."""
    known = data.rows.nonzero()[:, 0]
    parts = []
    for fold in folds:
        model = fold.model(configuration).select(known)
        images = unit_rows(data.features[0, fold.out & (rows >= 0)])
        parts += [fit_parts(model, some).cpu() for some in images.split(_AT_ONCE)]
    return torch.cat(parts)


def false_accept_rate(
    data: TrainingSet, folds: list[FoldFit], configuration: Configuration, level: float, weight: float
) -> tuple[float | None, tuple[float, float] | None]:
    """Measure the share of images of classes left out that the threshold accepts, and its 95% interval over classes.

    After a stage 1 these are the classes that it did not see; without one a fifth of the classes, 100 at most, is left
    out of each fold's PLDA. None where stage 1 saw all classes, or below 30 images.

    Args:
        data: All training data.
        folds: The models of the folds.
        configuration: The configuration.
        level: The threshold.
        weight: That of the ratio, see `rejection`.
    """
    accepted = [torch.empty(0, dtype=torch.float64)]
    owners = [torch.empty(0, dtype=torch.int64)]
    for model, late in _without_classes(data, folds, configuration):
        others = (~late & data.rows).nonzero()[:, 0]
        images = late[data.labels].nonzero()[:, 0]
        model = model.select(others)
        for some in images.split(_AT_ONCE):
            parts = fit_parts(model, unit_rows(data.features[0, some])).cpu()
            accepted.append((fit_scores(parts, weight) >= level).double())
        owners.append(images)
    images = torch.cat(owners)
    groups = data.observations[images]
    if len(groups.unique()) < _FEWEST_UNKNOWN:
        return None, None
    hits = torch.cat(accepted)
    shares = 1.0 / torch.bincount(groups)[groups].double()
    return float(hits @ shares / shares.sum()), share_range(hits, shares, data.labels[images])


def _without_classes(
    data: TrainingSet, folds: list[FoldFit], configuration: Configuration
) -> list[tuple[PLDA, Tensor]]:
    """Return models that some classes, bool [C], were left out of."""
    late = data.unseen_classes
    if bool(late.any()):
        return [(folds[0].model(configuration), late)]
    if bool(data.unseen.any()) or data.visual_init is not None:
        return []
    order = torch.tensor(class_order(data.labels, data.keys))
    found = []
    for number, fold in enumerate(folds):
        late = torch.zeros(data.classes, dtype=torch.bool)
        late[order[number::FOLDS][:_MOST_LEFT_OUT]] = True
        rest = ~fold.out & ~late[data.labels]
        if bool(rest.any()) and bool(late.any()) and not bool(late[data.rows].all()):
            model = fold.data.model(fold.data.moments(rest), configuration.shrinkage)
            plain = configuration.level == TextLevel.NONE
            found.append((model.without_text if plain else model, late))
    return found
