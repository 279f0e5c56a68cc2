"""Stage 2 on stored vectors: train the head, fit the generative model and the weights of both, by training images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.fusion import Gate, PartWeights, log_frequencies
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import PLDA, Moments, SharedGaussian, fit_shared
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.heads.weighing import (
    PLAINEST,
    SHRINKAGES,
    TEMPERED,
    Covariances,
    HeldOutClasses,
    HeldOutScores,
    balanced_accuracy,
    fit_gate,
    fit_prior,
    fit_temperature,
    fit_weights,
    image_weights,
    item_nll,
    plainest_covariances,
    usual_weights,
)
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.lgr import StoredImages, new_head, train_until
from vlltr_index.train.stage_two_data import StageTwoData, with_matching_text
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.schemas.records import Progress

_FEW_IMAGES = 5000  # with fewer, images are held out in folds; else in one split
_ENOUGH = 30  # images that stage 1 did not see, for fitting weights
_ENOUGH_FOR_LINEAR = 100  # the same, for stage 1's classifier to have a weight
FOLDS = 5
"""Number of folds on which the parts are weighed, see `fit_stage_two`."""
_ONE_PART = 10
_MOST_HELD = 1000
_NEW_IMAGES = (1, 5)
_ACCEPTED = 0.95
_NOT_FOUND = -1e5  # offset of a class of which nothing is known, beyond any likelihood
_QUERIES = 20
_AT_ONCE = 512
_LATE = 100
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
    if data.has_text:
        branches.append("text")
    fitted = [_fold(data, config, out, branches=branches, progress=progress) for out in held_out]
    everything = torch.ones_like(data.labels, dtype=torch.bool)
    moments = _moments(data, everything)
    steps = 0
    model = _model(data, moments)
    parts = Parts(model.shared, _BY_DEFAULT)
    notes = [_NOTHING_TO_SPARE]
    if fitted:
        steps = round(sum(fold.steps for fold in fitted) / len(fitted))
        parts, notes = _weigh(data, fitted, moments, branches=branches, matches=matches)
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
    parts = replace(parts, shared=parts.shared.to("cpu"))
    return StageTwoResult(head=head.eval(), parts=parts, log=log, notes=notes, rows=rows)


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
    moments = _moments(data, torch.ones_like(data.labels, dtype=torch.bool))
    held_out = _held_out(data) if bool(data.unseen.any()) else []
    folds = [_judged(data, out, _models(data, _rest(data, out)), head=head, steps=0) for out in held_out]
    head.cpu()
    if not folds:
        return Parts(_model(data, moments).shared.to("cpu"), _BY_DEFAULT), [_NOTHING_TO_SPARE]
    branches = ["visual", "text"] if data.has_text else ["visual"]
    parts, notes = _weigh(data, folds, moments, branches, matches=matches)
    return replace(parts, shared=parts.shared.to("cpu")), notes


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
    notes = ["There is no training image: the classes are told apart by their texts alone."]
    return StageTwoResult(head=head.eval(), parts=Parts(shared, weights), log=[], notes=notes)


@dataclass(frozen=True, eq=False)
class _Fold:
    """Parts fitted without M held-out images, and their scores of these images among C classes."""

    data: StageTwoData  # its anchors were selected without the held-out images
    out: Tensor  # bool [N], the held-out images
    labels: Tensor  # int64 [M]
    features: Tensor  # [M, D], normalised
    models: Mapping[float | None, PLDA]  # by shrinkage, with a noise of 1
    head: LGRHead
    image: Tensor  # [M, C], logits of the visual classifier
    text: Tensor  # [M, C], text logits
    steps: int  # of training the head

    def at(self, covariances: Covariances) -> PLDA:
        """Return the model with the given shrinkage and noise."""
        return covariances.noisy(self.models[covariances.shrinkage])

    def likelihoods(self, covariances: Covariances) -> Tensor:
        """Return the log-likelihoods of the held-out images under that model, [M, C], on the CPU."""
        return self.at(covariances).log_likelihoods(self.features).cpu()


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


def _moments(data: StageTwoData, rest: Tensor) -> Moments:
    """Measure the moments of the images `rest`, bool [N]."""
    units = data.observations[rest].unique(return_inverse=True)[1]
    return Moments.of(unit_rows(data.features[:, rest]), data.labels[rest], units, data.classes)


def _model(data: StageTwoData, moments: Moments, shrinkage: float | None = SHRINKAGES[0]) -> PLDA:
    """Fit the generative model by moments of images and the classes' prototypes."""
    shared = fit_shared(moments, data.prototypes, shrinkage)
    return PLDA(shared, moments.counts, moments.sums, data.prototypes)


def _models(data: StageTwoData, rest: Tensor) -> dict[float | None, PLDA]:
    """Fit one generative model for each shrinkage on the images `rest`, bool [N]."""
    moments = _moments(data, rest)
    return {shrinkage: _model(data, moments, shrinkage) for shrinkage in SHRINKAGES}


def _head(data: StageTwoData, config: LGRConfig, model: PLDA, rest: Tensor) -> LGRHead:
    """Make an untrained head; classes without a visual row of stage 1 get that of the model's linear discriminant."""
    shared = model.shared
    length = data.features[0, rest].norm(dim=1).mean()
    rows = TEMPERED * (shared.basis @ model.posterior[0].T).T
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
) -> _Fold:
    """Select anchors and fit all parts without the images `out`, bool [N], and score these images."""
    if data.has_text and data.anchors_without is not None:
        data = replace(data, bank=data.anchors_without(out).to(data.features.device))
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
) -> _Fold:
    """Score the images `out`, bool [N], by a head that was trained and models that were fitted without them."""
    plain = data.features[0, out]
    head = head.to(plain.device)
    with torch.inference_mode():
        image = _visual(data, head, plain)
        text = _text(data, head, plain)
    return _Fold(
        data=data, out=out, labels=data.labels[out], features=unit_rows(plain), models=models, head=head,
        image=image, text=text, steps=steps,
    )  # fmt: skip


def _visual(data: StageTwoData, head: LGRHead, features: Tensor) -> Tensor:
    """Compute the logits of the visual classifier [B, C], on the CPU; zeros for classes without a row in the head."""
    logits = head.visual_logits(features).cpu()
    rows = data.rows if logits.shape[1] < data.classes else slice(None)
    whole = logits.new_zeros(len(features), data.classes)
    whole[:, rows] = logits
    return whole


def _text(data: StageTwoData, head: LGRHead, features: Tensor) -> Tensor:
    """Compute text logits [B, C], on the CPU; a class without a sentence has the mean of the others."""
    if not data.has_text:
        return torch.zeros(len(features), data.classes)
    logits = torch.cat([head.text_logits(part, data.bank) for part in features.split(_AT_ONCE)]).cpu()
    positions = torch.where(data.places >= 0, data.places, 0)
    return torch.where(data.places >= 0, logits[:, positions], logits.mean(1, keepdim=True))


def _weigh(
    data: StageTwoData, folds: list[_Fold], moments: Moments, branches: Sequence[str], matches: bool | None
) -> tuple[Parts, list[str]]:
    """Choose covariances and weights on the held-out images; return the parts, and notes for the user."""
    known = data.rows
    position = known.long().cumsum(0) - 1
    labels = position[torch.cat([fold.labels for fold in folds])]
    units = torch.cat([data.observations[fold.out] for fold in folds])
    enough = len(units.unique()) >= _ENOUGH or not bool(data.unseen.any())
    counts = moments.counts.cpu()[known]
    weights = image_weights(labels, counts, units)
    # Classes weigh alike here: n^-1/2 favours large classes and a wide noise, which draws small classes together.
    alike = image_weights(labels, counts, units, power=1.0)

    def columns(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[:, known]

    def costs(covariances: Covariances) -> Tensor:
        level = columns([fold.likelihoods(covariances) for fold in folds])
        losses = item_nll(fit_temperature(level, labels, alike) * level, labels)
        return torch.stack([losses, (level.argmax(1) != labels).double()])

    chosen = plainest_covariances(costs, alike, units) if enough else PLAINEST
    scores = HeldOutScores(
        labels=labels,
        image=columns([fold.image for fold in folds]) if "visual" in branches else None,
        likelihoods=columns([fold.likelihoods(chosen) for fold in folds]),
        text=columns([fold.text for fold in folds]) if "text" in branches else None,
        weights=weights,
    )
    found = fit_weights(scores) if enough else usual_weights(scores)
    if enough:
        found = _gates(data, folds, chosen, found)
        prior = fit_prior(scores.fused(found), log_frequencies(counts), labels, units)
        found = replace(found, prior=prior)
    shared = chosen.noisy(_model(data, moments, chosen.shrinkage)).shared
    best = scores.likelihoods.amax(1).sort().values
    accept = float(best[int((1.0 - _ACCEPTED) * len(best))])
    left = f"Stage 1 left {plural(len(labels), 'image')} out, too few to weigh by: the usual weights hold."
    notes = _notes(data, scores, units, weights=found, shared=shared, matches=matches) if enough else [left]
    held = HeldOutAnswers(labels, scores.fused(found).softmax(1).half())
    let_in = _let_in(data, folds, chosen, accept)
    if let_in is not None:
        notes.append(
            f"'None of these' (--reject) lets {100 * _ACCEPTED:.0f} % of the held-out images in, and"
            f" {100 * let_in:.0f} % of images of classes that were left out of the fit."
        )
    parts = Parts(shared, found, accept, held, let_in)
    if parts.texts_are_mute:  # a class that has text alone would win wherever the images say little
        unknown = replace(found.text_only, offset=_NOT_FOUND)
        parts = replace(parts, weights=replace(found, text_only=unknown))
    return parts, notes


def _let_in(data: StageTwoData, folds: list[_Fold], chosen: Covariances, level: float) -> float | None:
    """Measure the share of images of classes left out that fit another class as well as `level`; None below 30 units.

    After a stage 1 these are the classes that it did not see. Without one each fold leaves a fifth of the classes out.
    """
    if bool(data.unseen_classes.any()):
        left_out = [(folds[0].at(chosen), data.unseen_classes)]
    elif bool(data.unseen.any()) or data.visual_init is not None:
        return None  # the tower knows all classes
    else:
        left_out = []
        drawn = torch.randperm(data.classes, generator=torch.Generator().manual_seed(0))
        for number, fold in enumerate(folds):
            late = torch.zeros(data.classes, dtype=torch.bool)
            late[drawn[number::FOLDS]] = True
            rest = ~fold.out & ~late[data.labels]
            if bool(rest.any()) and bool(late.any()):
                model = _model(fold.data, _moments(fold.data, rest), chosen.shrinkage)
                left_out.append((chosen.noisy(model), late))
    accepted = torch.zeros(0, dtype=torch.bool)
    for model, late in left_out:
        images = torch.cat([_one_a_unit(data, place) for place in late.nonzero()[:, 0].tolist()])
        others = model.select((~late & data.rows).nonzero()[:, 0])
        for some in images.split(_AT_ONCE):
            best = others.log_likelihoods(unit_rows(data.features[0, some])).amax(1).cpu()
            accepted = torch.cat([accepted, best >= level])
    return float(accepted.double().mean()) if len(accepted) >= _ENOUGH else None


def _gates(data: StageTwoData, folds: list[_Fold], chosen: Covariances, found: PartWeights) -> PartWeights:
    """Fit the weights and offsets of later classes, on classes that play them.

    After a stage 1 these are the classes that it did not see. Without one a fifth of the classes in each fold, 100 at
    most, plays classes known by text alone; classes with images keep the weights in `found`.
    """
    with_text = data.places >= 0
    if bool(data.unseen_classes.any()):
        fold = folds[0]
        late = data.unseen_classes
        model = fold.at(chosen)
        most = max(len(_one_a_unit(data, place)) for place in late.nonzero()[:, 0].tolist())

        def trained_text(features: Tensor) -> Tensor:
            with torch.inference_mode():
                return _text(data, fold.head, features)

        alone = [
            _held_out_classes(
                data, fold.out, model, late=late & with_text, images=0, text_logits=trained_text
            )
        ]
        few = [
            _held_out_classes(data, fold.out, model, late=late, images=k, text_logits=trained_text)
            for k in _NEW_IMAGES
            if k < most
        ]
        return replace(
            found,
            few_shot=fit_gate(found.few_shot, few, weights=False),
            text_only=fit_gate(found.text_only, alone),
        )
    if bool(data.unseen.any()) or data.visual_init is not None or not data.has_text:
        return found
    texts = data.prototypes if data.sentence_means is None else data.sentence_means

    def zero_shot(features: Tensor) -> Tensor:  # by all sentences: anchors were selected by the images
        logits = (data.logit_scale * unit_rows(features) @ unit_rows(texts).T).cpu()
        return torch.where(with_text, logits, logits[:, with_text].mean(1, keepdim=True))

    drawn = torch.randperm(data.classes, generator=torch.Generator().manual_seed(0))
    drawn = drawn[with_text[drawn]]
    designs = []
    for number, fold in enumerate(folds):
        late = torch.zeros_like(with_text)
        late[drawn[number::FOLDS][:_LATE]] = True
        rest = ~fold.out & ~late[data.labels]
        if bool(rest.any()):
            model = chosen.noisy(_model(fold.data, _moments(fold.data, rest), chosen.shrinkage))
            prototypes = torch.where(late[:, None].to(texts.device), texts, model.prototypes)
            model = replace(model, prototypes=prototypes)
            designs.append(
                _held_out_classes(data, fold.out, model, late=late, images=0, text_logits=zero_shot)
            )
    return replace(found, text_only=fit_gate(found.text_only, designs))


def _held_out_classes(
    data: StageTwoData,
    out: Tensor,
    model: PLDA,
    late: Tensor,
    images: int,
    text_logits: Callable[[Tensor], Tensor],
) -> HeldOutClasses:
    """Score images with the classes `late`, bool [C], as later ones: each is known by its text and `images` images.

    Scored are those of the held-out images `out`, bool [N], that are of other classes, and 20 images of each late one.
    """
    known = data.rows & ~late
    order = torch.cat([known.nonzero()[:, 0], late.nonzero()[:, 0]])
    column = torch.full((data.classes,), -1)
    column[order] = torch.arange(len(order))
    counts = model.counts.clone()
    sums = model.sums.clone()
    asked = [torch.empty(0, dtype=torch.int64)]
    for place in late.nonzero()[:, 0].tolist():
        own = _one_a_unit(data, place)
        shown = own[:images]
        counts[place] = len(shown)
        sums[place] = unit_rows(data.features[0, shown]).double().sum(0)
        asked.append(own[images : images + _QUERIES])
    queries = torch.cat(asked)
    model = replace(model, counts=counts, sums=sums).select(order)
    old = data.features[0, out & known[data.labels]]
    new = data.features[0, queries]
    return HeldOutClasses(
        likelihoods=model.log_likelihoods(unit_rows(old)).cpu().double(),
        text=text_logits(old)[:, order].double(),
        new_likelihoods=model.log_likelihoods(unit_rows(new)).cpu().double(),
        new_text=text_logits(new)[:, order].double(),
        new_labels=column[data.labels[queries]], trained=int(known.sum()),
    )  # fmt: skip


def _one_a_unit(data: StageTwoData, place: int) -> Tensor:
    """Return the first image of each unit of a class, int64."""
    first: dict[int, int] = {}
    for image in (data.labels == place).nonzero()[:, 0].tolist():
        first.setdefault(int(data.observations[image]), image)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _notes(
    data: StageTwoData,
    scores: HeldOutScores,
    units: Tensor,
    weights: PartWeights,
    shared: SharedGaussian,
    matches: bool | None,
) -> list[str]:
    """Tell the user what was decided; `units`, int64 [M], are those of the held-out images."""
    right = balanced_accuracy(scores.fused(weights), scores.labels, units)
    shares = {"linear layer": weights.image, "generative model": weights.generative, "text": weights.text}
    used = ", ".join(f"{name} {weight:.3g}" for name, weight in shares.items() if weight)
    return [
        f"{100 * right:.1f} % of {plural(len(units), 'training image')} right, each held out from what was fitted, and"
        f" each class counted alike. Weights: {used or 'no part counts'}.",
        _of_texts(data, weights, shared, matches),
    ]


def _of_texts(data: StageTwoData, weights: PartWeights, shared: SharedGaussian, matches: bool | None) -> str:
    """Tell the user how much the texts help."""
    if matches is False:
        return "The texts do not match the images: permuted between the classes they fit as well. They do not count."
    if not data.has_text:
        return "There is no sentence: the images alone count."
    if not weights.text and not shared.text_r2:
        match = "match the images" if matches else "of so few classes may match the images or not"
        return f"The texts {match}, but the images say as much by themselves."
    beside = (
        ", and count beside the images." if weights.text else "; beside the images they say nothing more."
    )
    return f"The texts predict {100 * shared.text_r2:.0f} % of how the class means differ{beside}"
