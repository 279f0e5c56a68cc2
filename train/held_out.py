"""What stage 2 holds out, and what is chosen on it: covariances, weights, gates, the level of rejection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.fusion import PartWeights, log_frequencies
from vlltr_index.heads.gating import HeldOutClasses, LaterFigures, fit_gate, fit_trust, later_figures
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.rejection import (
    FitWeights,
    Rejection,
    directions,
    fit_parts,
    representatives,
    share_among,
)
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.heads.units import count_units
from vlltr_index.heads.weighing import (
    PLAINEST,
    Covariances,
    HeldOutScores,
    balanced_accuracy,
    balanced_shares,
    fit_correlation,
    fit_prior,
    fit_temperature,
    fit_weights,
    image_weights,
    item_nll,
    paired_mean,
    plainest_covariances,
    share_range,
    usual_weights,
)
from vlltr_index.tensors import unit_rows
from vlltr_index.train.stage_two_data import StageTwoData
from vlltr_index.wording import plural, points_within, share_within

_ENOUGH = 30  # images that stage 1 did not see, for fitting weights
_NEW_IMAGES = (1, 5)
_ACCEPTED = 0.95
_QUERIES = 20
_AT_ONCE = 512
_LATE = 100
_CLASS_FOLDS = 5  # parts of the classes, of which each fold leaves one out
_FEWEST_TO_BOUND = 10  # held-out images; the tail of fewer says nothing
_TOO_FEW = (
    "Too few images were held out to weigh the parts by: the usual weights hold, and texts count little."
)


@dataclass(frozen=True, eq=False)
class Fold:
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


def text_logits(data: StageTwoData, head: LGRHead, features: Tensor) -> Tensor:
    """Compute text logits [B, C], on the CPU; a class without a sentence has the mean of the others."""
    if not data.reads_text:
        return torch.zeros(len(features), data.classes)
    logits = torch.cat([head.text_logits(part, data.bank) for part in features.split(_AT_ONCE)]).cpu()
    positions = torch.where(data.places >= 0, data.places, 0)
    return torch.where(data.places >= 0, logits[:, positions], logits.mean(1, keepdim=True))


def visual_logits(data: StageTwoData, head: LGRHead, features: Tensor) -> Tensor:
    """Compute the logits of the visual classifier [B, C], on the CPU; zeros for classes without a row in the head."""
    logits = head.visual_logits(features).cpu()
    rows = data.rows if logits.shape[1] < data.classes else slice(None)
    whole = logits.new_zeros(len(features), data.classes)
    whole[:, rows] = logits
    return whole


def weigh_parts(
    data: StageTwoData, folds: list[Fold], moments: Moments, branches: Sequence[str], matches: bool | None
) -> tuple[Parts, list[str]]:
    """Choose covariances and weights on the held-out images; return the parts, and notes for the user."""
    known = data.rows
    labels = (known.long().cumsum(0) - 1)[torch.cat([fold.labels for fold in folds])]
    units = torch.cat([data.observations[fold.out] for fold in folds])
    enough = len(units.unique()) >= _ENOUGH or not bool(data.unseen.any())
    counts = count_units(data.labels, data.observations, data.classes)[known]
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
    fitted = fit_weights(scores) if enough else usual_weights(scores)
    trust = _text_trust(data, folds, chosen, moments) if enough else 1.0
    left_out = _left_out(data, folds, chosen, trust)
    foretold = enough and bool(left_out)
    fitted, later = _of_later_classes(data, folds, chosen, left_out, fitted, foretold)
    if enough:
        prior = fit_prior(scores.fused(fitted), log_frequencies(moments.counts.cpu()[known]), labels, units)
        fitted = replace(fitted, prior=prior)
    model = chosen.noisy(data.model(moments, chosen.shrinkage)).whole
    rejection, accept = _rejection(data, folds, chosen, model.shared)
    unknown_accepted, unknown_range = _let_in(data, left_out, accept, rejection.weights)
    parts = Parts(
        model.shared,
        fitted,
        accept,
        HeldOutAnswers(labels, scores.fused(fitted).softmax(1).half()),
        unknown_accepted=unknown_accepted,
        unknown_range=unknown_range,
        correlation=fit_correlation(scores.fused(fitted), labels, units, weights),
        later=later,
        text_trust=trust,
        shifts=None if model.shifts is None else model.shifts[known].cpu(),
        rejection=rejection,
        texts=_of_texts(data, fitted, model.shared, matches) if enough else _TOO_FEW,
    ).muted()
    first = near_chance(columns([fold.likelihoods(PLAINEST) for fold in folds]), labels, alike, units)
    weighed = [_of_weights(scores, units, fitted)] if enough else []
    return parts, [*first, *weighed, *_more_notes(parts), *_of_stage_one(data, foretold)]


def near_chance(scores: Tensor, labels: Tensor, weights: Tensor, units: Tensor) -> list[str]:
    """Say so if held-out images are named rightly no more often than by chance, within two standard errors.

    Args:
        scores: Float [M, C], of the plainest generative model, before anything is chosen.
        labels: Int64 [M].
        weights: Float64 [M], the weight of each image.
        units: Int64 [M], the unit of each image.
    """
    chance = 1.0 / scores.shape[1]
    right = (scores.argmax(1) == labels).double()
    mean, error = paired_mean((right - chance)[None], weights, units)
    if scores.shape[1] < 2 or float(mean) > 2.0 * float(error):
        return []
    share = f"{100 * (float(mean) + chance):.0f} % are right, each class counted alike"
    return [
        f"Near chance: of held-out images {share}, and {100 * chance:.0f} % by chance. The encoder may not suit these"
        " pictures, or they are too few to tell: what is chosen below rests on little."
    ]


@dataclass(frozen=True, eq=False)
class _LeftOut:
    """Classes that a fold's parts, or its generative model alone, were fitted without.

    Attributes:
        fold: The fold.
        classes: Bool [C], the classes.
        model: The generative model without them.
        text_logits: Gives text logits [B, C] of features, which know of these classes what is known of later ones.
    """

    fold: Fold
    classes: Tensor
    model: PLDA
    text_logits: Callable[[Tensor], Tensor]


def _text_trust(data: StageTwoData, folds: list[Fold], chosen: Covariances, moments: Moments) -> float:
    """Find how far texts of later classes are to be trusted: to stage 1, those that it saw look too good."""
    unseen = data.unseen_classes & (data.places >= 0) & (moments.counts > 0).cpu()
    if not bool(unseen.any()):
        return 1.0
    model = replace(folds[0].at(chosen), counts=moments.counts, sums=moments.sums)
    return fit_trust(model.select(unseen.nonzero()[:, 0]))


def _left_out(data: StageTwoData, folds: list[Fold], chosen: Covariances, trust: float) -> list[_LeftOut]:
    """Leave classes out, which play unknown or later ones; none if stage 1 saw all of them.

    After a stage 1 these are the classes that it did not see, whose texts have the given trust. Without one each fold
    leaves a fifth of the classes out, 100 at most.
    """
    if bool(data.unseen_classes.any()):
        fold = folds[0]
        late = data.unseen_classes
        model = fold.at(chosen)
        model = replace(model, trust=torch.where(late.to(model.sums.device), trust, 1.0).double())
        return [_LeftOut(fold, late, model, partial(text_logits, data, fold.head))]
    if bool(data.unseen.any()) or data.visual_init is not None:
        return []
    return _leave_fifths_out(data, folds, chosen)


def _leave_fifths_out(data: StageTwoData, folds: list[Fold], chosen: Covariances) -> list[_LeftOut]:
    """Leave another fifth of the classes, 100 at most, out of each fold."""
    drawn = torch.randperm(data.classes, generator=torch.Generator().manual_seed(0))
    left_out = []
    for number, fold in enumerate(folds):
        late = torch.zeros(data.classes, dtype=torch.bool)
        late[drawn[number::_CLASS_FOLDS][:_LATE]] = True
        rest = ~fold.out & ~late[data.labels]
        if bool(rest.any()) and bool(late.any()):
            by_text = fold.data.selected_without(~rest)  # a later class has no image to select by
            model = chosen.noisy(fold.data.model(fold.data.moments(rest), chosen.shrinkage))
            texts = by_text.anchored(model.shared.kernel)
            texts = torch.where(late[:, None].to(texts.device), texts, model.prototypes)
            model = replace(model, prototypes=texts)
            left_out.append(_LeftOut(fold, late, model, partial(_zero_shot, by_text)))
    return left_out


def _zero_shot(data: StageTwoData, features: Tensor) -> Tensor:
    """Compute zero-shot logits [B, C], on the CPU, by the mean anchors; a class without any has the mean of the others.

    The head's own text logits were trained on the classes left out.
    """
    if not data.reads_text:
        return torch.zeros(len(features), data.classes)
    with_text = data.places >= 0
    logits = (data.logit_scale * unit_rows(features) @ unit_rows(data.anchored(None)).T).cpu()
    return torch.where(with_text, logits, logits[:, with_text].mean(1, keepdim=True))


def _compared(data: StageTwoData, shared: SharedGaussian, some: Tensor) -> tuple[Tensor, Tensor]:
    """Choose those of the images `some`, bool [N], that others are compared with: int64 [K], and directions [K, D]."""
    there = (some & data.rows[data.labels]).nonzero()[:, 0]
    chosen = there[representatives(data.labels[there], data.observations[there])]
    return chosen, directions(shared, unit_rows(data.features[0, chosen])).half()


def _rejection(
    data: StageTwoData, folds: list[Fold], chosen: Covariances, shared: SharedGaussian
) -> tuple[Rejection, float]:
    """Weigh what tells images of no class on the held-out images; return it, and how well 95 % of their units fit.

    Images are not compared with those that fit less: a foreign image under a wrong label would let its like in.
    """
    parts = []
    for fold in folds:
        model = fold.at(chosen).select(data.rows.nonzero()[:, 0])
        _, compared = _compared(data, model.shared, ~fold.out)
        parts += [fit_parts(model, some, compared).cpu() for some in fold.features.split(_AT_ONCE)]
    own = torch.cat(parts)
    weights = FitWeights.of(own)
    fits = weights.sum(own)
    held_out = torch.cat([fold.out.nonzero()[:, 0] for fold in folds])
    level = _level(fits, data.observations[held_out])
    fitting = torch.ones_like(data.unseen)
    fitting[held_out[fits < level]] = False
    images, compared = _compared(data, shared, fitting)
    rows = data.rows.long().cumsum(0) - 1
    return Rejection(weights, rows[data.labels[images]], compared.cpu()), level


def _level(fits: Tensor, units: Tensor) -> float:
    """Return how well 95 % of the images fit at least, where the units, int64 [M], count alike."""
    _, unit, sizes = units.unique(return_inverse=True, return_counts=True)
    order = fits.argsort()
    below = (1.0 / sizes[unit][order].double()).cumsum(0)
    first = int(torch.searchsorted(below, (1.0 - _ACCEPTED) * len(sizes), right=True))
    return float(fits[order[min(first, len(fits) - 1)]])


def _let_in(
    data: StageTwoData, left_out: list[_LeftOut], level: float, weights: FitWeights
) -> tuple[float | None, tuple[float, float] | None]:
    """Estimate the share of images of no class that fit so well among all classes; None below 30 units.

    It is told by images of classes left out: by what fits one of the others, and one of half of these. The 95 %
    interval, over classes, is that of the former, moved.

    Args:
        data: Training data.
        left_out: Where classes are left out.
        level: How well an image has to fit.
        weights: What makes up how well it fits.
    """
    accepted = []
    of_half = []
    owners = []
    numbers = []
    for one in left_out:
        images = torch.cat([_one_a_unit(data, place) for place in one.classes.nonzero()[:, 0].tolist()])
        others = (~one.classes & data.rows).nonzero()[:, 0]
        halves = [half for half in (others[::2], others[1::2]) if len(half)]
        by_all, *of_halves = (
            (_fits_among(data, one, some, images, weights) >= level).double() for some in (others, *halves)
        )
        accepted.append(by_all)
        of_half.append(torch.stack(of_halves).mean(0))
        owners.append(data.labels[images])
        numbers.append(len(others))
    if sum(map(len, owners)) < _ENOUGH:
        return None, None
    fitting = torch.cat(accepted)
    before = float(fitting.mean())
    classes = int(data.rows.sum())
    share = share_among(classes, before, float(torch.cat(of_half).mean()), round(sum(numbers) / len(numbers)))
    ends = share_range(fitting, torch.ones_like(fitting), torch.cat(owners))
    if ends is None:
        return share, None
    low, high = (min(max(end + share - before, 0.0), 1.0) for end in ends)
    return share, (low, high)


def _fits_among(
    data: StageTwoData, left_out: _LeftOut, classes: Tensor, images: Tensor, weights: FitWeights
) -> Tensor:
    """Return how well images, int64 [M], fit some classes, int64 [K], of a model that other classes are left out of."""
    model = left_out.model.select(classes)
    there = ~left_out.fold.out & torch.isin(data.labels, classes)
    _, compared = _compared(data, model.shared, there)
    parts = [fit_parts(model, unit_rows(data.features[0, some]), compared) for some in images.split(_AT_ONCE)]
    return weights.sum(torch.cat(parts)).cpu()


def _of_later_classes(
    data: StageTwoData,
    folds: list[Fold],
    chosen: Covariances,
    left_out: list[_LeftOut],
    weights: PartWeights,
    foretold: bool,
) -> tuple[PartWeights, tuple[LaterFigures, ...]]:
    """Fit the gates on the classes left out or, where there are none, on fifths that the encoder saw, see `_gates`."""
    if not foretold and sum(len(fold.labels) for fold in folds) < _FEWEST_TO_BOUND:
        return weights, ()
    return _gates(data, left_out or _leave_fifths_out(data, _CLASS_FOLDS * folds, chosen), weights, foretold)


def _gates(
    data: StageTwoData, left_out: list[_LeftOut], weights: PartWeights, foretold: bool
) -> tuple[PartWeights, tuple[LaterFigures, ...]]:
    """Fit the weights and offsets of later classes on classes left out; estimate what later classes get and cost.

    Args:
        data: Training data.
        left_out: Where classes are left out.
        weights: The weights of the trained classes, and those of later ones before the fit.
        foretold: Whether the encoder did not see these classes. Otherwise their texts look too good and their images
            too much alike: what they cost is bounded, but no weight is fitted, and nothing is estimated.
    """
    with_text = data.places >= 0
    told = [one for one in left_out if bool((one.classes & with_text).any())]
    alone = [_held_out_classes(data, one, one.classes & with_text, images=0, weights=weights) for one in told]
    few = [
        [_held_out_classes(data, one, one.classes, images=images, weights=weights) for one in left_out]
        for images in _NEW_IMAGES
    ]
    weights = replace(
        weights,
        few_shot=fit_gate(weights.few_shot, [one for some in few for one in some], weights=False),
        text_only=fit_gate(weights.text_only, alone, weights=foretold),
    )
    if not foretold:
        return weights, ()
    figures = [later_figures(weights.text_only, alone)]
    figures += [later_figures(weights.few_shot, some) for some in few]
    return weights, tuple(one for some in figures for one in some)


def _held_out_classes(
    data: StageTwoData, left_out: _LeftOut, late: Tensor, images: int, weights: PartWeights
) -> HeldOutClasses:
    """Score images with the classes `late`, bool [C], as later ones: each is known by its text and `images` images.

    Scored are those of the fold's held-out images that are of trained classes, and 20 images of each late one.
    """
    fold = left_out.fold
    known = data.rows & ~left_out.classes
    trained = int(known.sum())
    order = torch.cat([known.nonzero()[:, 0], late.nonzero()[:, 0]])
    column = torch.full((data.classes,), -1)
    column[order] = torch.arange(len(order))
    counts = left_out.model.counts.clone()
    sums = left_out.model.sums.clone()
    asked = [torch.empty(0, dtype=torch.int64)]
    for place in late.nonzero()[:, 0].tolist():
        own = _one_a_unit(data, place)
        shown = own[:images]
        counts[place] = len(shown)
        sums[place] = unit_rows(data.features[0, shown]).double().sum(0)
        asked.append(own[images : images + _QUERIES])
    queries = torch.cat(asked)
    model = replace(left_out.model, counts=counts, sums=sums).select(order)

    def among(likelihoods: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """Compute log P(c | trained, x), float64 [B, trained]."""
        scores = weights.generative * likelihoods[:, :trained]
        for weight, logits in ((weights.image, image), (weights.text, text)):
            if weight:  # logits that do not count may be no numbers
                scores = scores + weight * logits[:, known]
        return scores.log_softmax(1)

    old = known[fold.labels]
    labels = column[fold.labels[old]]
    asked_for = data.features[0, queries]
    with torch.no_grad():
        likelihoods = model.log_likelihoods(fold.features[old]).cpu().double()
        text = left_out.text_logits(data.features[0, fold.out][old])[:, order].double()
        by_trained = among(likelihoods, fold.image[old], fold.text[old])
        new_likelihoods = model.log_likelihoods(unit_rows(asked_for)).cpu().double()
        new_text = left_out.text_logits(asked_for)[:, order].double()
        image = visual_logits(data, fold.head, asked_for) if weights.image else torch.zeros(1, data.classes)
        told = text_logits(fold.data, fold.head, asked_for) if weights.text else torch.zeros(1, data.classes)
        new_by_trained = among(new_likelihoods, image, told)
    shares = balanced_shares(labels, data.observations[fold.out][old])
    return HeldOutClasses(
        images=images,
        likelihoods=likelihoods, text=text,
        best=by_trained.amax(1), weights=shares * (by_trained.argmax(1) == labels),
        new_likelihoods=new_likelihoods, new_text=new_text, new_best=new_by_trained.amax(1),
        new_labels=column[data.labels[queries]], trained=trained,
    )  # fmt: skip


def _one_a_unit(data: StageTwoData, place: int) -> Tensor:
    """Return the first image of each unit of a class, int64."""
    first: dict[int, int] = {}
    for image in (data.labels == place).nonzero()[:, 0].tolist():
        first.setdefault(int(data.observations[image]), image)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _of_weights(scores: HeldOutScores, units: Tensor, weights: PartWeights) -> str:
    """Tell the user how the parts were weighed; `units`, int64 [M], are those of the held-out images."""
    right = balanced_accuracy(scores.fused(weights), scores.labels, units)
    shares = {"linear layer": weights.image, "generative model": weights.generative, "text": weights.text}
    used = ", ".join(name for name, weight in shares.items() if weight)
    images = f"{plural(len(units), 'training image')} ({plural(len(units.unique()), 'unit')})"
    return (
        f"Parts that count: {used or 'none'}. Their weights were chosen on {images} that the parts were not fitted on;"
        f" {100 * right:.1f} % of these are right, each class and unit counted alike. New pictures are not measured so,"
        " but by cross-validate or a test split."
    )


def _of_texts(data: StageTwoData, weights: PartWeights, shared: SharedGaussian, matches: bool | None) -> str:
    """Tell the user how much the texts help."""
    if matches is False:
        return "The texts do not match the images: permuted between the classes they fit as well. They do not count."
    if not data.has_text:
        return "There is no sentence: the images alone count."
    if not weights.text and not shared.text_r2:
        match = "match the images" if matches else "of so few classes may match the images or not"
        return f"The texts {match}, but the images say as much by themselves."
    beside = ", and shift those of small classes; the text branch has no weight beside the images."
    if weights.text:
        beside = ", and count beside the images."
    elif not data.reads_text:
        beside = ", by their words: the encoder has no text tower."
    told = f"The texts predict {100 * shared.text_r2:.0f} % of how the class means differ{beside}"
    if data.bank.readings is None:
        return told
    known = shared.kernel is not None and shared.kernel.knows_readings(data.bank.dim)
    return f"{told} The sentence-embedding model tells {'some of it' if known else 'no more'}."


def _of_stage_one(data: StageTwoData, foretold: bool) -> list[str]:
    """Tell the user where stage 1 saw too much for later classes to be foretold."""
    if foretold or data.visual_init is None:
        return []
    return [
        "Too little was kept out of stage 1: what later classes get is not foretold, and they may cost the others more"
        " than a point."
    ]


def _more_notes(parts: Parts) -> list[str]:
    """Tell the user of texts, and what unknown pictures, later classes and units get by these parts."""
    notes = [parts.texts]
    if parts.unknown_accepted is not None:
        notes.append(
            f"'None of these' (--reject) lets {100 * _ACCEPTED:.0f} % of the held-out images in, units counted alike,"
            f" and {share_within(parts.unknown_accepted, parts.unknown_range)} of images of other classes like"
            " these, by classes that were left out."
        )
    if parts.text_trust < 1.0:
        notes.append(
            f"Texts of classes added later shift their means by {100 * parts.text_trust:.0f} % of what those of the"
            " trained classes would: stage 1 knows the latter's."
        )
    if parts.later:
        notes += _of_later(parts.later)
    if parts.correlation < 1.0:
        notes.append(
            f"What images of a unit say is alike by {parts.correlation:g}: five together (predict --group) tell as much"
            f" as {5.0 / (1.0 + 4.0 * parts.correlation):.1f} independent ones."
        )
    return notes


def _of_later(later: Sequence[LaterFigures]) -> list[str]:
    """Tell the user what classes get and cost that are added later, a line for each number of images."""
    notes = []
    for images in dict.fromkeys(one.images for one in later):
        alone, *several = [one for one in later if one.images == images]
        known = f"by {plural(images, 'image')}" if images else "by its text alone"
        more = [
            f"; of {one.number:,} such classes {100 * one.found:.0f} %, and {100 * one.lost:.1f} points"
            for one in several
        ]
        notes.append(
            f"Estimated on classes left out: of a class added later that is known {known}"
            f" {share_within(alone.found, alone.found_range)} of the images would be found, and the others would lose"
            f" {points_within(alone.lost, alone.lost_range)}{''.join(more)}."
        )
    return notes
