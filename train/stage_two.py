"""Stage 2 on stored vectors: train the head, fit the generative model and the weights of both, by training images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.fusion import Gate, PartWeights
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.weighing import (
    SHRINKAGES,
    TEMPERED,
)
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.held_out import Fold, text_logits, visual_logits, weigh_parts
from vlltr_index.train.lgr import StoredImages, new_head, train_until
from vlltr_index.train.stage_two_data import StageTwoData, with_matching_text

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.schemas.records import Progress

_FEW_IMAGES = 5000  # with fewer, images are held out in folds; else in one split
_ENOUGH_FOR_LINEAR = 100  # the same, for stage 1's classifier to have a weight
FOLDS = 5
"""Number of folds on which the parts are weighed, see `fit_stage_two`."""
_ONE_PART = 10
_MOST_HELD = 1000
_ALONE = Gate(TEMPERED, 0.0)
_BY_DEFAULT = PartWeights(image=0.0, generative=TEMPERED, text=0.0, few_shot=_ALONE, text_only=_ALONE)
_NOTHING_TO_SPARE = (
    "No image could be kept out of training, so nothing could be weighed: the images count, text as a prior."
)


@dataclass(frozen=True, eq=False)
class StageTwoResult:
    """Result of stage 2.

    Attributes:
        head: The trained head.
        parts: The generative model's shared parameters and the weights; None for the rules `paper` and `logits`.
        log: One entry for each check of the head's training.
        notes: What was decided, in sentences for the user.
        rows: Bool [C], the classes with a row in the visual classifier; None: all. Others are scored as later ones.
    """

    head: LGRHead
    parts: Parts | None
    log: list[dict[str, float]]
    notes: list[str] = field(default_factory=list)
    rows: Tensor | None = None


def fit_stage_two(
    data: StageTwoData,
    config: LGRConfig,
    run_dir: Path | None = None,
    progress: Progress | None = None,
    folds: int = FOLDS,
) -> StageTwoResult:
    """Train the head, fit the generative model, and choose their weights on images that none of them was trained on.

    Held out are the images that stage 1 did not see. Without a stage 1 there are `folds`; from 5,000 images on, one
    split that holds out a tenth. For each fold anchors are selected and everything is fitted on the rest. With
    fewer than 30 images that stage 1 did not see no weight is fitted; with fewer than 100 stage 1's classifier gets no
    weight, for it is poor where images are few. At last everything is fitted on all images, the head with the number
    of steps after which its held-out loss had converged, averaged over the folds.

    Args:
        data: Images, anchors, and what stage 1 saw of them.
        config: The recipe's `lgr` section.
        run_dir: Folder for the state of the final head's training, where an interrupted run goes on; None saves none.
        progress: Called after every step.
        folds: Number of folds, at least 2.
    """
    data, matches = with_matching_text(data.placed())
    held_out = _held_out(data, folds)
    linear = len(data.labels) >= _FEW_IMAGES
    if data.visual_init is not None:
        linear = sum(int(out.sum()) for out in held_out) >= _ENOUGH_FOR_LINEAR
    branches: list[str] = []  # the trained parts that may get a weight
    if linear:
        branches.append("visual")
    if data.reads_text:
        branches.append("text")
    fitted = [_fold(data, config, out, branches=branches, progress=progress) for out in held_out]
    everything = torch.ones_like(data.labels, dtype=torch.bool)
    moments = data.moments(everything)
    steps = 0
    model = data.model(moments)
    parts = _usual(data, model)
    notes = [_NOTHING_TO_SPARE]
    if fitted:
        steps = round(sum(fold.steps for fold in fitted) / len(fitted))
        parts, notes = weigh_parts(data, fitted, moments, branches=branches, matches=matches)
    head = _head(data, config, model, everything)
    log = list[dict[str, float]]()
    rows = data.rows
    seen = _learned(data, branches)
    if steps:
        images = _stored(data, seen)
        head, log = train_until(
            head, images, config, steps, branches=branches, run_dir=run_dir, progress=progress
        )
    _keep_rows(head.cpu(), rows)
    return StageTwoResult(head=head.eval(), parts=_to_keep(parts, data), log=log, notes=notes, rows=rows)


def _to_keep(parts: Parts, data: StageTwoData) -> Parts:
    """Return the parts on the CPU, with what images were counted by."""
    return replace(parts, shared=parts.shared.to("cpu"), unit_correlation=data.unit_correlation)


def _keep_rows(head: LGRHead, rows: Tensor) -> None:
    """Remove all rows but those of the classes `rows`, bool [C], from the visual classifier, in place."""
    layer = head.visual_head[-1] if isinstance(head.visual_head, nn.Sequential) else head.visual_head
    head.num_visual_classes = int(rows.sum())
    for name, values in layer.named_parameters():
        setattr(layer, name, nn.Parameter(values.detach()[rows].clone()))


def weigh(data: StageTwoData, head: LGRHead) -> tuple[Parts, list[str]]:
    """Fit the generative model beside a trained head, and the weights of both on the images that stage 1 did not see.

    Returns:
        The parts, and what was decided, in sentences for the user.
    """
    data, matches = with_matching_text(data.placed())
    moments = data.moments(torch.ones_like(data.labels, dtype=torch.bool))
    held_out = _held_out(data) if bool(data.unseen.any()) else []
    folds = [_judged(data, out, _models(data, _rest(data, out)), head=head, steps=0) for out in held_out]
    head.cpu()
    if not folds:
        return _to_keep(_usual(data, data.model(moments)), data), [_NOTHING_TO_SPARE]
    branches = ["visual", "text"] if data.reads_text else ["visual"]
    parts, notes = weigh_parts(data, folds, moments, branches, matches=matches)
    return _to_keep(parts, data), notes


def _usual(data: StageTwoData, model: PLDA) -> Parts:
    """Return the parts where no image can be held out."""
    model = model.whole
    shifts = None if model.shifts is None else model.shifts[data.rows].cpu()
    return Parts(model.shared, _BY_DEFAULT, shifts=shifts, texts=_NOTHING_TO_SPARE)


def without_images(bank: AnchorBank, config: LGRConfig, logit_scale: float) -> StageTwoResult:
    """Make a head for classes without any image: untrained attention over their sentences alone decides."""
    dim = bank.dim
    head = new_head(bank, config, (torch.zeros(0, dim), torch.zeros(0)), logit_scale)
    zeros = torch.zeros(dim, dtype=torch.float64)
    none = torch.zeros(dim, dim, dtype=torch.float64)
    ones = zeros + 1.0
    eye = torch.eye(dim, dtype=torch.float64)
    shared = SharedGaussian(
        centre=zeros, basis=eye, spread=ones, blank=ones, text_centre=zeros, text_map=none
    )
    by_text = Gate(0.0, 1.0)
    weights = PartWeights(image=0.0, generative=0.0, text=0.0, few_shot=by_text, text_only=by_text)
    told = "There is no training image: the classes are told apart by their texts alone."
    return StageTwoResult(head=head.eval(), parts=Parts(shared, weights, texts=told), log=[], notes=[told])


def _held_out(data: StageTwoData, number: int = FOLDS) -> list[Tensor]:
    """Return the images that each fold holds out, bool [N]: whole units, but never the last images of a class.

    There is no fold after a stage 1 that saw all images, for its tower is too sure of these.
    """
    folds = [data.unseen] if bool(data.unseen.any()) else []
    if data.visual_init is None and not folds:
        folds = _drawn_folds(data, number)
    left = []
    for fold in folds:
        out = fold & data.rows[data.labels]
        counts = torch.bincount(data.labels[~out], minlength=data.classes)
        out &= counts[data.labels] > 0
        if bool(out.any()):
            left.append(out)
    return left


def _drawn_folds(data: StageTwoData, number: int) -> list[Tensor]:
    """Draw folds of all images, or one split of a tenth where there are many; no unit is divided."""
    units = data.units
    shuffled = sorted(set(units), key=lambda unit: hashlib.sha256(f"fold:{unit}".encode()).digest())
    ranks = {unit: rank for rank, unit in enumerate(shuffled)}
    place = torch.tensor([ranks[unit] for unit in units])
    if len(units) < _FEW_IMAGES:
        return [place % number == part for part in range(number)]
    sizes = torch.bincount(place)
    most = min(len(units) // _ONE_PART, _MOST_HELD)
    small = sizes <= most
    return [(small & ((sizes * small).cumsum(0) <= most))[place]]


def _models(data: StageTwoData, rest: Tensor) -> dict[float | None, PLDA]:
    """Fit one generative model for each shrinkage on the images `rest`, bool [N]."""
    moments = data.moments(rest)
    return {shrinkage: data.model(moments, shrinkage) for shrinkage in SHRINKAGES}


def _head(data: StageTwoData, config: LGRConfig, model: PLDA, rest: Tensor) -> LGRHead:
    """Make an untrained head; classes without a visual row of stage 1 get that of the model's linear discriminant."""
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
    data: StageTwoData, config: LGRConfig, out: Tensor, branches: Sequence[str], progress: Progress | None
) -> Fold:
    """Select anchors and fit all parts without the images `out`, bool [N], and score these images."""
    data = data.selected_without(out)
    rest = _rest(data, out)
    labels = data.labels[out]
    plain = data.features[0, out]
    models = _models(data, rest)
    head = _head(data, config, models[SHRINKAGES[0]], rest)
    log = list[dict[str, float]]()
    if branches:
        seen = rest & _learned(data, branches)
        images = _stored(data, seen)
        head, log = train_until(head, images, config, (plain, labels), branches=branches, progress=progress)
    return _judged(data, out, models, head, steps=int(log[-1]["best"]) if log else 0)


def _learned(data: StageTwoData, branches: Sequence[str]) -> Tensor:
    """Return the images that a head learns from, bool [N]: of classes with a row and, for text alone, a sentence."""
    of = data.rows if "visual" in branches else data.rows & (data.places >= 0)
    return of[data.labels]


def _stored(data: StageTwoData, chosen: Tensor) -> StoredImages:
    """Return the images `chosen`, bool [N], for the training of a head."""
    return StoredImages(data.features[:, chosen], data.labels[chosen], data.bank, data.places)


def _rest(data: StageTwoData, out: Tensor) -> Tensor:
    """Return the images that all parts are fitted on where `out`, bool [N], is held out: bool [N]."""
    return ~out & ~data.unseen_classes[data.labels]


def _judged(
    data: StageTwoData, out: Tensor, models: Mapping[float | None, PLDA], head: LGRHead, steps: int
) -> Fold:
    """Score the images `out`, bool [N], by a head that was trained and models that were fitted without them."""
    plain = data.features[0, out]
    head = head.to(plain.device)
    with torch.inference_mode():
        image = visual_logits(data, head, plain)
        text = text_logits(data, head, plain)
    return Fold(
        data=data, out=out, labels=data.labels[out], features=unit_rows(plain), models=models, head=head,
        image=image, text=text, steps=steps,
    )  # fmt: skip
