"""Stage 2 over stored vectors: head, generative model, and how much each part counts, from training images alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.fusion import Meeting, PartWeights
from vlltr_index.heads.generative import GenerativeModel, Moments, SharedGaussian, class_sums, fit_shared
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import (
    PLAINEST,
    SHRINKAGES,
    TEMPERED,
    Covariances,
    HeldOutScores,
    Newcomers,
    balanced_accuracy,
    fit_meeting,
    fit_temperature,
    fit_weights,
    image_weights,
    item_nll,
    plainest_covariances,
    usual_weights,
)
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows, work_device
from vlltr_index.train.recognition import new_head, train_until
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.schemas.records import Progress

_FEW_IMAGES = 5000  # below it the parts are held out in folds, from there on in one part
_ENOUGH, _ENOUGH_FOR_LINEAR = 30, 100  # images that stage 1 did not see, to weigh by
_FOLDS = 5
_ONE_PART = 10
_MOST_HELD = 1000
_NEW_IMAGES = (1, 5)
_PERMUTATIONS = 99
_ACCEPTED = 0.95
_FEWEST_TO_MATCH = 5
_QUERIES = 20
_LATE = 100
_ALONE = Meeting(TEMPERED, 0.0)
_BY_DEFAULT = PartWeights(0.0, TEMPERED, 0.0, _ALONE, _ALONE)
_NOTHING_TO_SPARE = (
    "No image could be kept out of training, so nothing could be weighed: the images count, text as a prior."
)


@dataclass(frozen=True, eq=False)
class StageTwoData:
    """What stage 2 learns from.

    Attributes:
        features: Float [V, N, D], V views of N images, the plain one first, unnormalised.
        labels: Int64 [N], 0 to C - 1.
        bank: Anchors of the C classes, or of some; the others have no sentence.
        places: Int64 [C], each class's position in the bank; -1 for one without a sentence.
        units: For each image the name of its unit, see `units_of`: what is held out together, and counts once a class.
        unseen: Bool [N], images that stage 1 did not see, of classes that it saw; all False where it did not run.
        unseen_classes: Bool [C], classes that stage 1 did not see.
        visual_init: Rows [C, D] and biases [C] of stage 1's visual classifier, a bias NaN for a class it did not see.
        logit_scale: The multiplier of the cosine.
        sentence_means: Float [C, D], mean of all normalised sentences of each class, chosen or not, zeros without one;
            None: as `prototypes`.
        anchors_without: The bank as it would be, had the images bool [N] not chosen its anchors; None: as it is.
    """

    features: Tensor
    labels: Tensor
    bank: AnchorBank
    places: Tensor
    units: Sequence[str]
    unseen: Tensor
    unseen_classes: Tensor
    visual_init: tuple[Tensor, Tensor] | None
    logit_scale: float
    sentence_means: Tensor | None = None
    anchors_without: Callable[[Tensor], AnchorBank] | None = None

    @property
    def classes(self) -> int:
        """C."""
        return len(self.places)

    @cached_property
    def observations(self) -> Tensor:
        """What is one observation, int64 [N]."""
        return number_observations(self.labels, self.units)

    @property
    def has_text(self) -> bool:
        """Whether any class has a sentence."""
        return bool((self.places >= 0).any())

    @property
    def rows(self) -> Tensor:
        """The classes with a row in the visual classifier, bool [C]: where stage 1 ran, those that it saw."""
        seen = ~self.unseen_classes
        return seen if self.visual_init is None else seen & self.visual_init[1].isfinite()

    def placed(self) -> StageTwoData:
        """The vectors where heavy work is done, see `work_device`; numbers and masks stay on the CPU."""
        device = work_device(self.features)
        means = self.sentence_means if self.sentence_means is None else self.sentence_means.to(device)
        bank = self.bank.to(device)
        features = self.features.to(device)
        return replace(self, features=features, bank=bank, sentence_means=means)

    @property
    def prototypes(self) -> Tensor:
        """Mean of each class's normalised anchors, float32 [C, D]; zeros for a class without a sentence."""
        rows = torch.zeros(self.classes, self.features.shape[2], device=self.features.device)
        told = self.places >= 0
        if bool(told.any()):
            rows[told] = self.bank.prototypes(True).float()[self.places[told]]
        return rows


@dataclass(frozen=True, eq=False)
class Decision:
    """What stage 2 gives.

    Attributes:
        head: The trained head.
        parts: The generative model's shared parameters and the weights; None for the rules `paper` and `logits`.
        log: One entry a check of the head's training.
        notes: What was decided, a sentence each.
        rows: Bool [C], the classes that have a row in the visual classifier; None: all. The others meet them as classes
            do that come later.
    """

    head: LGRHead
    parts: Parts | None
    log: list[dict[str, float]]
    notes: list[str] = field(default_factory=list)
    rows: Tensor | None = None


def decide(
    data: StageTwoData, config: LGRConfig, run_dir: Path | None = None, progress: Progress | None = None
) -> Decision:
    """Train the head and fit the generative model; weigh them on images that trained none of the parts weighed.

    Those are the images that stage 1 did not see, where there are some; else five folds, from 5,000 images on one part
    in ten. In each fold anchors are chosen and everything is fitted anew on the rest. Fewer than 30 images that stage 1
    did not see weigh nothing, and fewer than 100 not stage 1's classifier, which is poor where images are few. Then all
    is fitted on all images, the head for as many steps as its held-out loss took to converge.

    Args:
        data: See there.
        config: The recipe's `lgr` section.
        run_dir: Where the final head's unfinished state is kept; None keeps none.
        progress: Called after every step.
    """
    data, matches = _with_matching_text(data.placed())
    held_out = _held_out(data)
    linear = len(data.labels) >= _FEW_IMAGES
    if data.visual_init is not None:
        linear = sum(int(out.sum()) for out in held_out) >= _ENOUGH_FOR_LINEAR
    branches = ("visual",) * linear + ("text",) * data.has_text  # which trained parts may count
    folds = [_fold(data, config, out, branches, progress) for out in held_out]
    everything = torch.ones_like(data.labels, dtype=torch.bool)
    moments = _moments(data, everything)
    steps = 0
    model = _model(data, moments)
    parts = Parts(model.shared, _BY_DEFAULT)
    notes = [_NOTHING_TO_SPARE]
    if folds:
        steps = round(sum(fold.steps for fold in folds) / len(folds))
        parts, notes = _weigh(data, folds, moments, branches, matches)
    head = _head(data, config, model, everything)
    log = list[dict[str, float]]()
    rows = data.rows
    seen = _learned(data, branches)
    if steps:
        head, log = train_until(
            head, data.features[:, seen], data.labels[seen], data.bank, config, steps, places=data.places,
            branches=branches, run_dir=run_dir, progress=progress,
        )  # fmt: skip
    _keep_rows(head.cpu(), rows)
    return Decision(head.eval(), replace(parts, shared=parts.shared.to("cpu")), log, notes, rows)


def _keep_rows(head: LGRHead, rows: Tensor) -> None:
    """Take the rows of other classes than `rows`, bool [C], out of the visual classifier, whatever its kind."""
    layer = head.visual_head[-1] if isinstance(head.visual_head, nn.Sequential) else head.visual_head
    head.num_visual_classes = int(rows.sum())
    for name, values in layer.named_parameters():
        setattr(layer, name, nn.Parameter(values.detach()[rows].clone()))


def weigh(data: StageTwoData, head: LGRHead) -> tuple[Parts, list[str]]:
    """Fit the generative model beside a head that is trained already, and weigh both on the images it did not see.

    Returns:
        The parts, and what was decided, a sentence each.
    """
    data, matches = _with_matching_text(data.placed())
    moments = _moments(data, torch.ones_like(data.labels, dtype=torch.bool))
    held_out = _held_out(data) if bool(data.unseen.any()) else []
    folds = [_judged(data, out, _models(data, _rest(data, out)), head, 0) for out in held_out]
    head.cpu()
    if not folds:
        return Parts(_model(data, moments).shared.to("cpu"), _BY_DEFAULT), [_NOTHING_TO_SPARE]
    parts, notes = _weigh(data, folds, moments, ("visual",) + ("text",) * data.has_text, matches)
    return replace(parts, shared=parts.shared.to("cpu")), notes


def without_images(bank: AnchorBank, config: LGRConfig, logit_scale: float) -> Decision:
    """A head for classes none of which has an image: untrained attention over their sentences alone decides."""
    dim = bank.dim
    head = new_head(bank, config, (torch.zeros(0, dim), torch.zeros(0)), logit_scale)
    zeros = torch.zeros(dim, dtype=torch.float64)
    none = torch.zeros(dim, dim, dtype=torch.float64)
    ones = zeros + 1.0
    eye = torch.eye(dim, dtype=torch.float64)
    shared = SharedGaussian(zeros, eye, ones, ones, zeros, none)
    by_text = Meeting(0.0, 1.0)
    notes = ["There is no training image: the classes are told apart by their texts alone."]
    return Decision(head.eval(), Parts(shared, PartWeights(0.0, 0.0, 0.0, by_text, by_text)), [], notes)


def text_matches(data: StageTwoData) -> bool | None:
    """Whether the classes' texts lie nearer to their own images than permuted ones do; None below 5 classes with both.

    The statistic is the sum over the classes of the inner product of the mean image and the mean sentence, both less
    their means over the classes; it has to exceed those of 95 in 99 permutations. All sentences count, for anchors were
    chosen by the images.
    """
    images = unit_rows(data.features[0])
    text = data.prototypes if data.sentence_means is None else data.sentence_means
    counts, sums = class_sums(images, data.labels, data.classes)
    both = (counts > 0).cpu() & (data.places >= 0)
    if int(both.sum()) < _FEWEST_TO_MATCH:
        return None
    means = sums[both] / counts[both][:, None]
    text = text[both].double()
    agreement = (means - means.mean(0)) @ (text - text.mean(0)).T
    generator = torch.Generator().manual_seed(0)
    own = float(agreement.trace())
    drawn = [torch.randperm(len(text), generator=generator) for _ in range(_PERMUTATIONS)]
    less = sum(float(agreement.gather(1, order[:, None].to(agreement.device)).sum()) < own for order in drawn)
    return less >= 0.95 * _PERMUTATIONS


def _with_matching_text(data: StageTwoData) -> tuple[StageTwoData, bool | None]:
    """The data, as if no class had a sentence where texts do not match the images; and whether they do."""
    matches = text_matches(data)
    return replace(data, places=torch.full_like(data.places, -1)) if matches is False else data, matches


@dataclass(frozen=True, eq=False)
class _Fold:
    """All parts fitted without some images, and what they say of these; C columns."""

    data: StageTwoData  # with the anchors chosen without them
    out: Tensor  # bool [N], the M images
    labels: Tensor  # int64 [M]
    features: Tensor  # [M, D], normalised
    models: Mapping[float | None, GenerativeModel]  # by shrinkage, with a noise of 1
    head: LGRHead
    image: Tensor
    text: Tensor
    steps: int

    def at(self, covariances: Covariances) -> GenerativeModel:
        """The model with some of the covariances that are chosen from."""
        return covariances.noisy(self.models[covariances.shrinkage])

    def likelihoods(self, covariances: Covariances) -> Tensor:
        """What it says of the images, [M, C]."""
        return self.at(covariances).log_likelihoods(self.features).cpu()


def _held_out(data: StageTwoData) -> list[Tensor]:
    """The images that each fold holds out, bool [N]: what goes together, but never the last images of a class.

    After a stage 1 that saw all images there is none: what it trained would be sure of them.
    """
    folds = [data.unseen] if bool(data.unseen.any()) else []
    if data.visual_init is None and not folds:
        folds = _drawn_folds(data)
    left = []
    for fold in folds:
        out = fold & data.rows[data.labels]
        counts = torch.bincount(data.labels[~out], minlength=data.classes)
        out &= counts[data.labels] > 0
        if bool(out.any()):
            left.append(out)
    return left


def _drawn_folds(data: StageTwoData) -> list[Tensor]:
    """Five folds of all images, or one of a tenth; what goes together is in one."""
    units = data.units
    shuffled = sorted(set(units), key=lambda unit: hashlib.sha256(f"fold:{unit}".encode()).digest())
    ranks = {unit: rank for rank, unit in enumerate(shuffled)}
    place = torch.tensor([ranks[unit] for unit in units])
    if len(units) < _FEW_IMAGES:
        return [place % _FOLDS == part for part in range(_FOLDS)]
    sizes = torch.bincount(place)
    most = min(len(units) // _ONE_PART, _MOST_HELD)
    small = sizes <= most
    return [(small & ((sizes * small).cumsum(0) <= most))[place]]


def _moments(data: StageTwoData, rest: Tensor) -> Moments:
    """Those of the images `rest`, bool [N]."""
    units = data.observations[rest].unique(return_inverse=True)[1]
    return Moments.of(unit_rows(data.features[:, rest]), data.labels[rest], units, data.classes)


def _model(data: StageTwoData, moments: Moments, shrinkage: float | None = SHRINKAGES[0]) -> GenerativeModel:
    shared = fit_shared(moments, data.prototypes, shrinkage)
    return GenerativeModel(shared, moments.counts, moments.sums, data.prototypes)


def _models(data: StageTwoData, rest: Tensor) -> dict[float | None, GenerativeModel]:
    """Fit one of each shrinkage on the images `rest`, bool [N]."""
    moments = _moments(data, rest)
    return {shrinkage: _model(data, moments, shrinkage) for shrinkage in SHRINKAGES}


def _head(data: StageTwoData, config: LGRConfig, model: GenerativeModel, rest: Tensor) -> LGRHead:
    """An untrained head; its visual rows are stage 1's, or else start from the model's tempered discriminant."""
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
        head, log = train_until(
            head, data.features[:, seen], data.labels[seen], data.bank, config,
            (plain, labels), places=data.places, branches=branches, progress=progress,
        )  # fmt: skip
    return _judged(data, out, models, head, int(log[-1]["best"]) if log else 0)


def _learned(data: StageTwoData, branches: Sequence[str]) -> Tensor:
    """The images that a head learns from, bool [N]."""
    of = data.rows if "visual" in branches else data.rows & (data.places >= 0)
    return of[data.labels]


def _rest(data: StageTwoData, out: Tensor) -> Tensor:
    """What all parts are fitted on where `out` is held out, bool [N]."""
    return ~out & ~data.unseen_classes[data.labels]


def _judged(
    data: StageTwoData,
    out: Tensor,
    models: Mapping[float | None, GenerativeModel],
    head: LGRHead,
    steps: int,
) -> _Fold:
    """Ask a head that was trained without some images, and models that were fitted without them, about these."""
    plain = data.features[0, out]
    head = head.to(plain.device)
    with torch.inference_mode():
        image = _visual(data, head, plain)
        text = _text(data, head, plain)
    return _Fold(data, out, data.labels[out], unit_rows(plain), models, head, image, text, steps)


def _visual(data: StageTwoData, head: LGRHead, features: Tensor) -> Tensor:
    """Logits of the visual classifier [B, C], on the CPU; zeros for classes that have no row in the head."""
    logits = head.visual_logits(features).cpu()
    rows = data.rows if logits.shape[1] < data.classes else slice(None)
    whole = logits.new_zeros(len(features), data.classes)
    whole[:, rows] = logits
    return whole


def _text(data: StageTwoData, head: LGRHead, features: Tensor) -> Tensor:
    """Text logits [B, C], on the CPU; a class without a sentence has the mean of the others."""
    if not data.has_text:
        return torch.zeros(len(features), data.classes)
    logits = torch.cat([head.text_logits(part, data.bank) for part in features.split(512)]).cpu()
    told = torch.where(data.places >= 0, data.places, 0)
    return torch.where(data.places >= 0, logits[:, told], logits.mean(1, keepdim=True))


def _weigh(
    data: StageTwoData,
    folds: list[_Fold],
    moments: Moments,
    branches: Sequence[str],
    matches: bool | None,
) -> tuple[Parts, list[str]]:
    """Choose covariances and weights on the held-out images; what is answered to these, and what to say of it all."""
    known = data.rows
    position = known.long().cumsum(0) - 1
    labels = position[torch.cat([fold.labels for fold in folds])]
    units = torch.cat([data.observations[fold.out] for fold in folds])
    enough = len(units.unique()) >= _ENOUGH or not bool(data.unseen.any())
    counts = moments.counts.cpu()[known]
    weights = image_weights(labels, counts, units)
    # As if classes were drawn alike: by n^-1/2 a wide noise wins, under which the means of small classes move together.
    alike = image_weights(labels, counts, units, power=1.0)

    def columns(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[:, known]

    def costs(covariances: Covariances) -> Tensor:
        level = columns([fold.likelihoods(covariances) for fold in folds])
        losses = item_nll(fit_temperature(level, labels, alike) * level, labels)
        return torch.stack([losses, (level.argmax(1) != labels).double()])

    chosen = plainest_covariances(costs, alike, units) if enough else PLAINEST
    scores = HeldOutScores(
        labels,
        columns([fold.image for fold in folds]) if "visual" in branches else None,
        columns([fold.likelihoods(chosen) for fold in folds]),
        columns([fold.text for fold in folds]) if "text" in branches else None,
        weights,
    )
    found = fit_weights(scores) if enough else usual_weights(scores)
    if enough:
        found = _meetings(data, folds, chosen, found)
    best = scores.likelihoods.amax(1).sort().values
    accept = float(best[int((1.0 - _ACCEPTED) * len(best))])
    left = f"Stage 1 left {many(len(labels), 'image')} out, too few to weigh by: the usual weights hold."
    shared = chosen.noisy(_model(data, moments, chosen.shrinkage)).shared
    notes = _notes(data, scores, units, found, shared, matches) if enough else [left]
    held = HeldOutAnswers(labels, scores.fused(found).softmax(1).half())
    return Parts(shared, found, accept, held), notes


def _meetings(data: StageTwoData, folds: list[_Fold], chosen: Covariances, found: PartWeights) -> PartWeights:
    """How later classes meet the others, from ones that stand for them.

    After a stage 1 these are the classes that it did not see. Without one, where images held out say enough of classes
    that have images, they are a fifth of the classes in each fold, 100 at most, known by text alone.
    """
    told = data.places >= 0
    if bool(data.unseen_classes.any()):
        fold = folds[0]
        late = data.unseen_classes
        model = fold.at(chosen)
        most = max(len(_one_a_unit(data, place)) for place in late.nonzero()[:, 0].tolist())

        def said(features: Tensor) -> Tensor:
            with torch.inference_mode():
                return _text(data, fold.head, features)

        alone = [_newcomers(data, fold.out, model, late & told, 0, said)]
        few = [_newcomers(data, fold.out, model, late, k, said) for k in _NEW_IMAGES if k < most]
        return replace(
            found,
            pictured=fit_meeting(found.pictured, few, weights=False),
            told=fit_meeting(found.told, alone),
        )
    if bool(data.unseen.any()) or data.visual_init is not None or not data.has_text:
        return found
    texts = data.prototypes if data.sentence_means is None else data.sentence_means

    def zero_shot(features: Tensor) -> Tensor:  # by all sentences: anchors were chosen by the images
        logits = (data.logit_scale * unit_rows(features) @ unit_rows(texts).T).cpu()
        return torch.where(told, logits, logits[:, told].mean(1, keepdim=True))

    drawn = torch.randperm(data.classes, generator=torch.Generator().manual_seed(0))
    drawn = drawn[told[drawn]]
    designs = []
    for number, fold in enumerate(folds):
        late = torch.zeros_like(told)
        late[drawn[number::_FOLDS][:_LATE]] = True
        rest = ~fold.out & ~late[data.labels]
        if bool(rest.any()):
            model = chosen.noisy(_model(fold.data, _moments(fold.data, rest), chosen.shrinkage))
            prototypes = torch.where(late[:, None].to(texts.device), texts, model.prototypes)
            model = replace(model, prototypes=prototypes)
            designs.append(_newcomers(data, fold.out, model, late, 0, zero_shot))
    return replace(found, told=fit_meeting(found.told, designs, offset=False))


def _newcomers(
    data: StageTwoData,
    out: Tensor,
    model: GenerativeModel,
    late: Tensor,
    images: int,
    text_logits: Callable[[Tensor], Tensor],
) -> Newcomers:
    """The classes `late`, bool [C], each known by its text and so many images, one a unit; `out` as for `_judged`."""
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
    return Newcomers(
        likelihoods=model.log_likelihoods(unit_rows(old)).cpu().double(),
        text=text_logits(old)[:, order].double(),
        new_likelihoods=model.log_likelihoods(unit_rows(new)).cpu().double(),
        new_text=text_logits(new)[:, order].double(),
        new_labels=column[data.labels[queries]], trained=int(known.sum()),
    )  # fmt: skip


def _one_a_unit(data: StageTwoData, place: int) -> Tensor:
    """The first image of each unit of a class, int64."""
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
    """Say what was decided, for people; units int64 [M] are those of the held-out images."""
    right = balanced_accuracy(scores.fused(weights), scores.labels, units)
    shares = {"linear layer": weights.image, "generative model": weights.generative, "text": weights.text}
    used = ", ".join(f"{name} {weight:.3g}" for name, weight in shares.items() if weight)
    return [
        f"{100 * right:.1f} % of {many(len(units), 'training image')} right, each held out from what was fitted, and"
        f" each class counted alike. Weights: {used or 'no part counts'}.",
        _of_texts(data, weights, shared, matches),
    ]


def _of_texts(data: StageTwoData, weights: PartWeights, shared: SharedGaussian, matches: bool | None) -> str:
    """What the texts are worth."""
    if matches is False:
        return "The texts do not match the images: permuted between the classes they fit as well. They do not count."
    if not data.has_text:
        return "There is no sentence: the images alone count."
    if not weights.text and not shared.text_r2:
        match = "match the images" if matches else "of so few classes may match the images or not"
        return f"The texts {match}, but the images say as much by themselves."
    told = ", and count beside the images." if weights.text else "; beside the images they say nothing more."
    return f"The texts foretell {100 * shared.text_r2:.0f} % of how the class means differ{told}"
