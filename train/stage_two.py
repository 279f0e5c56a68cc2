"""Stage 2 on stored vectors: fit the PLDA, train the head where that pays, and choose all that the table decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.configuration import TEMPERED, USUAL, Chosen, Configuration, OutOfFold, choose
from vlltr_index.heads.cross_validation import cross_validate
from vlltr_index.heads.dealing import FOLDS
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.rejection import fit_scores, ratio_weight, threshold
from vlltr_index.heads.text_trust import fit_trust
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.heads.weighing import fit_correlation
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.train.decisions import what_was_decided
from vlltr_index.train.lgr import StoredImages, new_head, train_until
from vlltr_index.train.out_of_fold import (
    FoldFit,
    false_accept_rate,
    fit_of_rows,
    fold_models,
    images_held_out,
    out_of_fold,
    row_folds,
)
from vlltr_index.train.training_set import TrainingSet

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.schemas.records import Progress

_STOPPING = FOLDS - 1  # the fifth of the held-out part by which training stops
_NO_TABLE = "No image could be held out: nothing was chosen, and the accuracy is not measured."


@dataclass(frozen=True, eq=False)
class StageTwoResult:
    """Result of stage 2.

    Attributes:
        head: The head, trained or not.
        parts: The PLDA's shared parameters, and all that was chosen; None for the rules `paper` and `logits`.
        log: One entry for each check of the head's training; empty for an untrained head.
        notes: What was decided, in sentences for the user.
        rows: Bool [C], the base classes, which have a row in the linear classifier; None: all.
        folds: The models of the folds, or the one that was fitted without the single held-out part.
        fold_of: Int64 [N], the fold of each image in the out-of-fold table, -1 for one that is not in it.
        scalars: What the rows of the other folds choose for each fold.
    """

    head: LGRHead
    parts: RuleParameters | None
    log: list[dict[str, float]]
    notes: list[str] = field(default_factory=list)
    rows: Tensor | None = None
    folds: Sequence[FoldModel] = ()
    fold_of: Tensor | None = None
    scalars: Mapping[int, tuple[Configuration, PartWeights]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FoldModel:
    """What was fitted without some images, for `recognition.folds`.

    Attributes:
        out: Bool [N], the images.
        shared: The PLDA's shared parameters.
        shifts: Float64 [C_b, Z], see `PLDA`, of the base classes; None: nothing.
        head: The head, with rows for the base classes.
        bank: The anchors.
        sentence_ids: The sentence of each anchor.
    """

    out: Tensor
    shared: SharedGaussian
    shifts: Tensor | None
    head: LGRHead
    bank: AnchorBank
    sentence_ids: Sequence[str]


def fit_stage_two(
    data: TrainingSet,
    config: LGRConfig,
    head: LGRHead | None = None,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> StageTwoResult:
    """Fit the PLDA and, after a stage 1 or with `config.train`, train the head; choose by an out-of-fold table.

    For each fold anchors are selected and everything is fitted without its images, see `images_held_out`. At last
    everything is fitted on all images, the head with the number of steps after which its held-out loss had converged.
    The images that decide this number are not in the table.

    Args:
        data: Images, anchors, and what stage 1 saw of them.
        config: The recipe's `lgr` section.
        head: A head that was trained with the tower, without the images that `data` calls unseen; these are the table,
            and no head is trained.
        run_dir: Folder for the state of the final head's training, where an interrupted run resumes; None saves none.
        progress: Called with what is done, the number done, and the total.
    """
    data = data.placed()
    trains = head is None and (config.train or data.visual_init is not None)
    saw_all = head is not None and not bool(data.unseen.any())
    parts = [] if saw_all else images_held_out(data, one_part=trains or head is not None)
    rows = row_folds(data, parts)
    stop = rows == _STOPPING if trains else torch.zeros_like(data.unseen)
    rows = torch.where(stop, -1, rows)
    branches = (["visual", "text"] if data.reads_text else ["visual"]) if trains else []
    fit = partial(_fold, data, config, head=head, stop=stop, branches=branches, progress=progress)
    folds, terms = cross_validate(fit, data.features[0], parts, rows >= 0, progress)
    table = out_of_fold(data, parts, rows, terms) if bool((rows >= 0).any()) else None
    decision = _decide(data, folds, rows, table, progress=progress)
    log = list[dict[str, float]]()
    if head is None:
        head = _head(data, config, decision.model, torch.ones_like(data.unseen))
    if steps := round(sum(fold.steps for fold in folds) / len(folds)) if folds else 0:
        images = _stored(data, _learned(data, branches))
        head, log = train_until(
            head, images, config, steps, branches=branches, run_dir=run_dir, progress=progress
        )
    _keep_rows(head.cpu(), data.rows)
    return StageTwoResult(
        head=head.eval(),
        parts=decision.parts,
        log=log,
        notes=decision.notes,
        rows=data.rows,
        folds=_to_keep(folds, data.rows, decision),
        fold_of=rows,
        scalars=decision.scalars,
    )


def without_images(bank: AnchorBank, config: LGRConfig, logit_scale: float) -> StageTwoResult:
    """Make a head for classes without any image: untrained attention over their sentences alone decides."""
    dim = bank.dim
    head = new_head(bank, config, (torch.zeros(0, dim), torch.zeros(0)), logit_scale)
    zeros = torch.zeros(dim, dtype=torch.float64)
    none = torch.zeros(dim, dim, dtype=torch.float64)
    ones = zeros + 1.0
    eye = torch.eye(dim, dtype=torch.float64)
    shared = SharedGaussian(centre=zeros, basis=eye, spread=ones, text_centre=zeros, text_map=none)
    weights = PartWeights(image=0.0, generative=0.0, text=1.0)
    note = "There is no training image: the classes are recognised by their texts alone."
    return StageTwoResult(
        head=head.eval(), parts=RuleParameters(shared, weights, texts=note), log=[], notes=[note]
    )


@dataclass(frozen=True, eq=False)
class _Decision:
    """What the table decides.

    Attributes:
        parts: All that is stored beside the head.
        notes: Sentences for the user.
        model: The PLDA of all images.
        configuration: Of this model.
        scalars: See `StageTwoResult`.
    """

    parts: RuleParameters
    notes: list[str]
    model: PLDA
    configuration: Configuration
    scalars: Mapping[int, tuple[Configuration, PartWeights]] = field(default_factory=dict)


def _decide(
    data: TrainingSet,
    folds: list[FoldFit],
    rows: Tensor,
    table: OutOfFold | None,
    progress: Progress | None,
) -> _Decision:
    """Choose configuration, scalars and thresholds; fit the PLDA on all images; say what was decided."""
    moments = data.moments(torch.ones_like(data.unseen))
    if table is None:
        model = data.model(moments, USUAL.shrinkage)
        weights = PartWeights(image=0.0, generative=TEMPERED, text=0.0)
        parts = replace(_parts(data, model, USUAL, weights), texts=_NO_TABLE)
        return _Decision(parts, [_NO_TABLE], model, USUAL)
    chosen = choose(table, one_model=len(folds) == 1, progress=progress)
    model = data.model(moments, chosen.configuration.shrinkage)
    parts = _parts(data, model, chosen.configuration, chosen.weights)
    parts = replace(parts, text_trust=_text_trust(data, folds, chosen.configuration, model))
    parts = _with_table(data, folds, rows, table, chosen, parts)
    notes, texts = what_was_decided(data, table, chosen, parts)
    best = chosen.configuration
    return _Decision(replace(parts, texts=texts), notes, model, best, chosen.of_folds)


def _parts(
    data: TrainingSet, model: PLDA, configuration: Configuration, weights: PartWeights
) -> RuleParameters:
    """Return the parts that need no table."""
    whole = model.whole
    return RuleParameters(
        whole.shared.to("cpu"),
        weights,
        text_level=configuration.level,
        unit_correlation=data.unit_correlation,
        shifts=None if whole.shifts is None else whole.shifts[data.rows].cpu(),
    )


def _with_table(
    data: TrainingSet,
    folds: list[FoldFit],
    rows: Tensor,
    table: OutOfFold,
    chosen: Chosen,
    parts: RuleParameters,
) -> RuleParameters:
    """Add what the table decides beside configuration and scalars."""
    fits = fit_of_rows(data, folds, rows, chosen.configuration)
    weight = ratio_weight(fits)
    level = threshold(fit_scores(fits, weight), table.groups)
    rate, ends = None, None
    if level is not None:
        rate, ends = false_accept_rate(data, folds, chosen.configuration, level, weight)
    return replace(
        parts,
        ood_threshold=level,
        ratio_weight=weight,
        held_out=HeldOutAnswers(table.labels, chosen.log_probabilities.exp().half()),
        unknown_accepted=rate,
        unknown_range=ends,
        correlation=fit_correlation(chosen.log_probabilities, table.labels, table.groups, table.weights),
    )


def _text_trust(data: TrainingSet, folds: list[FoldFit], configuration: Configuration, whole: PLDA) -> float:
    """Find how far texts of added classes are to be trusted: those that stage 1 saw look too good.

    The classes that it did not see have the statistics of `whole`, the PLDA of all images.
    """
    unseen = data.unseen_classes & (data.places >= 0) & (whole.counts > 0).cpu()
    if not bool(unseen.any()):
        return 1.0
    model = replace(folds[0].models[configuration.shrinkage], counts=whole.counts, sums=whole.sums)
    return fit_trust(model.select(unseen.nonzero()[:, 0]))


def _head(data: TrainingSet, config: LGRConfig, model: PLDA, rest: Tensor) -> LGRHead:
    """Make an untrained head; classes without a row of stage 1 get that of the model's linear discriminant."""
    shared = model.shared
    length = data.features[0, rest].norm(dim=1).mean()
    rows = TEMPERED * shared.linear(model.posterior[0])
    biases = -(rows @ shared.centre) - 0.5 * TEMPERED * model.posterior[0].square().sum(1)
    rows = (rows / length).float().cpu()
    biases = biases.float().cpu()
    if data.visual_init is not None:
        there = data.visual_init[1].isfinite()
        rows[there] = data.visual_init[0][there]
        biases[there] = data.visual_init[1][there]
    return new_head(data.bank, config, (rows, biases), data.logit_scale)


def _fold(
    data: TrainingSet,
    config: LGRConfig,
    out: Tensor,
    *,
    head: LGRHead | None,
    stop: Tensor,
    branches: Sequence[str],
    progress: Progress | None,
) -> FoldFit:
    """Select anchors and fit everything without the images `out`, bool [N]; training stops by those of `stop`."""
    data = data.selected_without(out)
    stop = out & stop
    models = fold_models(data, out)
    linear = head is not None or bool(branches)  # an untrained one repeats the PLDA
    steps = 0
    if head is None:
        rest = ~out & ~data.unseen_classes[data.labels]
        head = _head(data, config, models[USUAL.shrinkage], rest)
        if branches and bool(stop.any()):
            images = _stored(data, rest & _learned(data, branches))
            held_out = data.features[0, stop], data.labels[stop]
            head, log = train_until(head, images, config, held_out, branches=branches, progress=progress)
            steps = int(log[-1]["best"]) if log else 0
    return FoldFit(data, out, models, head.to(data.features.device), linear, steps)


def _learned(data: TrainingSet, branches: Sequence[str]) -> Tensor:
    """Return the images that a head learns from, bool [N]: of classes with a row and, for text alone, a sentence."""
    of = data.rows if "visual" in branches else data.rows & (data.places >= 0)
    return of[data.labels]


def _stored(data: TrainingSet, chosen: Tensor) -> StoredImages:
    """Return the images `chosen`, bool [N], for the training of a head."""
    return StoredImages(data.features[:, chosen], data.labels[chosen], data.bank, data.places)


def _to_keep(folds: Sequence[FoldFit], rows: Tensor, decision: _Decision) -> list[FoldModel]:
    """Return what is kept of the folds, on the CPU; that of a single part has the configuration of all rows."""
    found = []
    for number, fold in enumerate(folds):
        usual = decision.configuration, decision.parts.weights
        configuration, _ = usual if len(folds) == 1 else decision.scalars.get(number, usual)
        model = fold.models[configuration.shrinkage]
        _keep_rows(fold.head.cpu(), rows)
        kept = FoldModel(
            out=fold.out,
            shared=model.shared.to("cpu"),
            shifts=None if model.shifts is None else model.shifts[rows].cpu(),
            head=fold.head.eval(),
            bank=fold.data.bank.to("cpu"),
            sentence_ids=fold.data.sentence_ids,
        )
        found.append(kept)
    return found


def _keep_rows(head: LGRHead, rows: Tensor) -> None:
    """Remove all rows but those of the classes `rows`, bool [C], from the linear classifier, in place."""
    layer = head.visual_head[-1] if isinstance(head.visual_head, nn.Sequential) else head.visual_head
    if head.num_visual_classes == int(rows.sum()):
        return
    head.num_visual_classes = int(rows.sum())
    for name, values in layer.named_parameters():
        setattr(layer, name, nn.Parameter(values.detach()[rows].clone()))
