"""The baselines on stored features, a class each with `fit` and `scores`; their rules and sources are in `rules`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from vlltr_index.evaluation.rules import (
    HeadTraining,
    TipCache,
    best_setting,
    choose_tip,
    class_means,
    fc_head,
    first_of_each_class,
    knn_sentence_logits,
    linear_logits,
    logistic_regression,
    lws_scales,
    shrunk_discriminant,
    tau_normalised,
    tip_logits,
)
from vlltr_index.heads.cross_validation import cross_validate, held_out_parts
from vlltr_index.heads.dealing import row_keys
from vlltr_index.heads.units import count_units, number_names
from vlltr_index.heads.weighing import fit_temperature, image_weights, nll
from vlltr_index.tensors import cosine_logits, unit_rows

if TYPE_CHECKING:
    from vlltr_index.schemas.config import BaselinesConfig
    from vlltr_index.schemas.records import Progress

Tower = Literal["fc", "own"]
"""The image-only baseline's, or the workspace's own."""

_Setting = TypeVar("_Setting")
_Fitted = TypeVar("_Fitted", bound="Baseline")


@dataclass(frozen=True, eq=False)
class Texts:
    """Vectors of sentences, float [N_t, D], unnormalised; labels, int64 [N_t], are classes, of which there are C."""

    vectors: Tensor
    labels: Tensor
    num_classes: int
    text_fp: str  # the encoder's fingerprint


class Limits(NamedTuple):
    """Up to how many classes and training images a baseline is fitted."""

    classes: int
    images: int


@dataclass(frozen=True)
class Choice:
    """The images that a setting was chosen on, in words, and the class-balanced accuracy there; None without images."""

    chosen_on: str
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class FitData:
    """What a baseline is fitted on.

    Attributes:
        features: Float32 [N, D], training images by one visual tower, unnormalised.
        labels: Int64 [N], 0 to C - 1.
        num_classes: C.
        fitted: Bool [N], images to fit on while settings are tried.
        seen: Float32 [M, D], the images that settings are chosen on.
        seen_labels: Int64 [M].
        chosen_on: Which images these are, in words.
        logit_scale: The encoder's multiplier of the cosine.
        classifier: Weight [C, D] and bias [C] of the fc baseline, for a baseline that takes its tower alone.
        texts: The sentences, for a baseline with `sentences`.
        units: The unit of each training image, for a baseline that `knows_prior`.
    """

    features: Tensor
    labels: Tensor
    num_classes: int
    fitted: Tensor
    seen: Tensor
    seen_labels: Tensor
    chosen_on: str
    logit_scale: float
    classifier: tuple[Tensor, Tensor] | None
    texts: Texts | None
    units: Sequence[str] = ()

    @cached_property
    def parts(self) -> list[Tensor]:
        """The training images that each fold of a cross-validation holds out, bool [N]."""
        return held_out_parts(self.labels.cpu(), self.units, row_keys(self.features))

    @property
    def held_out(self) -> Tensor:
        """Positions of the images of all parts, int64 [M], part by part."""
        return torch.cat([out.nonzero()[:, 0] for out in self.parts])

    def without(self, out: Tensor) -> FitData:
        """Return the data without some training images, bool [N]."""
        rest = (~out).to(self.features.device)
        return replace(self, features=self.features[rest], labels=self.labels[rest])

    def choose(
        self, settings: Sequence[_Setting], fit: Callable[[_Setting, Tensor, Tensor], _Fitted]
    ) -> _Fitted:
        """Fit with every setting, keep the one most accurate on `seen`, and fit it again if images were held back.

        `fit` takes a setting, features and labels. If there is nothing to choose on, the middle setting is taken.
        """
        if not len(self.seen):
            middle = fit(settings[len(settings) // 2], self.features, self.labels)
            return replace(middle, choice=Choice(self.chosen_on, None))
        tried = [fit(setting, self.features[self.fitted], self.labels[self.fitted]) for setting in settings]
        best, accuracy = best_setting(
            range(len(tried)), lambda at: tried[at].scores(self.seen), self.seen_labels
        )
        model = tried[best] if self.fitted.all() else fit(settings[best], self.features, self.labels)
        return replace(model, choice=Choice(self.chosen_on, accuracy))


@dataclass(frozen=True, eq=False, kw_only=True)
class Baseline:
    """A baseline on stored features. Its fields are what was fitted: tensors, and numbers or words.

    Attributes:
        name: Its name for the user, and in the table.
        towers: The towers whose features it takes, the first one that is there.
        sentences: The sentences that it is fitted on: `prompts` are those made of the class names, and all sentences
            of a class without any; None: it needs no text.
        reads_texts: Whether it scores by `texts`, which are not stored with it.
        probabilities: Whether the softmax of its scores is a probability.
        knows_prior: Whether `with_prior` fits how it answers where classes are not equally common. A baseline that
            chooses its settings on the same folds does it in `fit`.
        limits: Up to how many classes and training images it is fitted; None: any number.
        choice: How a setting was chosen; None without settings.
        texts: The sentences that it scores by.
        parts: Factor of its scores in an answer under a prior; None: it knows none.
    """

    name: ClassVar[str]
    towers: ClassVar[tuple[Tower, ...]] = ("own",)
    sentences: ClassVar[Literal["prompts", "all"] | None] = None
    reads_texts: ClassVar[bool] = False
    probabilities: ClassVar[bool] = True
    knows_prior: ClassVar[bool] = False
    limits: ClassVar[Limits | None] = None
    choice: Choice | None = None
    texts: Texts | None = None
    parts: float | None = None

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> Baseline:
        """Fit it on the training images, and choose its settings among those of `config`."""
        raise NotImplementedError

    def scores(self, features: Tensor) -> Tensor:
        """Return scores [N, C] for unnormalised features [N, D] of its tower."""
        raise NotImplementedError

    def terms(self, features: Tensor) -> dict[Hashable, Tensor]:
        """Return the scores, see `cross_validate`."""
        return {"scores": self.scores(features)}

    def with_prior(self, data: FitData, config: BaselinesConfig) -> Self:
        """Fit the temperature of the scores, by which they count under a prior, on held-out training images."""
        if not data.parts:
            return self
        _, terms = cross_validate(
            lambda out: self.fit(data.without(out), config, None), data.features, data.parts
        )
        return self._weighed(terms["scores"], data)

    def _weighed(self, scores: Tensor, data: FitData) -> Self:
        """Fit the temperature on scores [M, C] of the held-out training images, part by part."""
        at = data.held_out
        labels = data.labels.cpu()
        units = number_names(data.units)
        counts = count_units(labels, units, data.num_classes)
        weights = image_weights(labels[at], counts, units[at])
        level = fit_temperature(scores, labels[at], weights)
        return replace(self, parts=level)

    def under_prior(self, scores: Tensor, log_frequency: Tensor) -> Tensor | None:
        """Return scores [N, C] where classes are as common as [C] says; None if the baseline knows no prior."""
        if self.parts is None:
            return None
        known = log_frequency.to(scores)
        gone = known == -torch.inf  # 0 times it is no number
        return torch.where(gone, -torch.inf, self.parts * scores + known)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fitted tensors by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def settings(self) -> dict[str, float | str]:
        """The fitted numbers and words by name, and those of the choice."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {name: value for name, value in values.items() if isinstance(value, float | int | str)}
        if self.choice is not None:
            found["chosen_on"] = self.choice.chosen_on
            if self.choice.accuracy is not None:
                found["accuracy"] = round(self.choice.accuracy, 4)
        return found

    @classmethod
    def of(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Make the baseline of its `tensors` and `settings`."""
        own: dict[str, Any] = {k: v for k, v in settings.items() if k not in ("chosen_on", "accuracy")}
        own |= tensors
        choice = None
        if "chosen_on" in settings:
            choice = Choice(settings["chosen_on"], settings.get("accuracy"))
        return cls(**own, choice=choice)

    def to(self, device: torch.device) -> Self:
        """Return the baseline with its tensors on a device, in float32 but for labels."""
        moved: dict[str, Any] = {
            name: value.to(device).float() if value.is_floating_point() else value.to(device)
            for name, value in self.tensors.items()
        }
        return replace(self, **moved)


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Baseline):
    """A linear classifier, weight [C, D] and bias [C]."""

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return the logits [N, C]."""
        return linear_logits(features, self.weight, self.bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cosine(Baseline):
    """The multiplied cosine with one vector a class, weight [C, D]."""

    weight: Tensor
    scale: float

    def scores(self, features: Tensor) -> Tensor:
        """Return the cosines [N, C], multiplied."""
        return cosine_logits(features, self.weight, self.scale)


class NearestMean(Cosine):
    """NCM: the nearest class mean."""

    name = "ncm"
    towers = ("fc", "own")
    probabilities = False
    knows_prior = True

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> NearestMean:
        """Take the mean of each class's images."""
        return cls(weight=class_means(data.features, data.labels, data.num_classes), scale=1.0)


def _balanced(config: BaselinesConfig, lr: float) -> HeadTraining:
    """Return the training settings of cRT and LWS: class-balanced sampling and plain cross-entropy."""
    return HeadTraining(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=lr,
        weight_decay=config.weight_decay,
        sampler_power=1.0,
        seed=config.seed,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierRetraining(Linear):
    """cRT: the classifier trained again on balanced classes."""

    name = "crt"
    towers = ("fc",)
    lr: float

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> ClassifierRetraining:
        """Train it, and choose the learning rate."""

        def trained(lr: float, features: Tensor, labels: Tensor) -> ClassifierRetraining:
            training = _balanced(config, lr)
            weight, bias = fc_head(features, labels, data.num_classes, training, progress=progress)
            return cls(weight=weight, bias=bias, lr=lr)

        return data.choose(config.lrs, trained)


@dataclass(frozen=True, eq=False, kw_only=True)
class TauNormalised(Linear):
    """Tau-normalisation of the fc baseline's classifier."""

    name = "tau-norm"
    towers = ("fc",)
    tau: float

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> TauNormalised:
        """Choose tau."""
        assert data.classifier is not None
        weight, bias = data.classifier

        def scaled(tau: float, features: Tensor, labels: Tensor) -> TauNormalised:
            return cls(weight=tau_normalised(weight, tau), bias=torch.zeros_like(bias), tau=tau)

        return data.choose(config.taus, scaled)


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightScaling(Linear):
    """LWS: a learned factor of each class's logit by the fc baseline's classifier."""

    name = "lws"
    towers = ("fc",)
    lr: float

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> WeightScaling:
        """Train the factors, and choose the learning rate."""
        assert data.classifier is not None
        weight, bias = data.classifier

        def trained(lr: float, features: Tensor, labels: Tensor) -> WeightScaling:
            training = _balanced(config, lr)
            factors = lws_scales(features, labels, weight, bias, training=training, progress=progress)
            return cls(weight=weight * factors[:, None], bias=bias * factors, lr=lr)

        return data.choose(config.lrs, trained)


class Discriminant(Linear):
    """A linear discriminant with a shrunk covariance."""

    name = "discriminant"
    knows_prior = True

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> Discriminant:
        """Fit it in float64."""
        weight, bias = shrunk_discriminant(data.features.double(), data.labels, data.num_classes)
        return cls(weight=weight, bias=bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class Logistic(Linear):
    """Logistic regression on normalised features, less the logarithm of each class's share of the training images."""

    name = "logistic"
    knows_prior = True
    limits = Limits(classes=200, images=20_000)
    c: float

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> Logistic:
        """Choose C by the likelihood of held-out images, each unit counting as one, and fit it on all images."""
        strengths = sorted(set(config.logistic_c))
        if not data.parts:
            middle = strengths[len(strengths) // 2]
            return replace(cls.each(data, [middle])[middle], choice=Choice("nothing: defaults", None))
        _, terms = cross_validate(
            lambda out: _Logistics.fit(data.without(out), strengths),
            data.features,
            data.parts,
            progress=progress,
        )
        units = number_names(data.units)[data.held_out]
        labels = data.labels.cpu()[data.held_out]
        weights = 1.0 / torch.bincount(units)[units].double()
        best = min(strengths, key=lambda c: nll(terms[c] + terms["shares"], labels, weights))
        fitted = replace(cls.each(data, [best])[best], choice=Choice("folds of the training images", None))
        return fitted._weighed(terms[best], data)

    @classmethod
    def each(cls, data: FitData, strengths: Sequence[float]) -> dict[float, Logistic]:
        """Fit it with each C."""
        shares = _log_shares(data)
        fits = logistic_regression(unit_rows(data.features), data.labels, data.num_classes, strengths)
        return {
            c: cls(weight=weight, bias=bias - shares, c=c)
            for c, (weight, bias) in zip(strengths, fits, strict=True)
        }

    def with_prior(self, data: FitData, config: BaselinesConfig) -> Self:
        """Return the baseline as it is: `fit` has fitted the temperature."""
        return self

    def scores(self, features: Tensor) -> Tensor:
        """Return the logits [N, C] where all classes are equally common."""
        return linear_logits(unit_rows(features), self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class _Logistics:
    """Logistic regressions by C, and the logarithm of each class's share of the images, float64 [C]."""

    fits: Mapping[float, Logistic]
    shares: Tensor

    @classmethod
    def fit(cls, data: FitData, strengths: Sequence[float]) -> _Logistics:
        """Fit one with each C."""
        return cls(Logistic.each(data, strengths), _log_shares(data))

    def terms(self, features: Tensor) -> dict[Hashable, Tensor]:
        """Return the scores by C, and `shares`, which they are less."""
        scores: dict[Hashable, Tensor] = {c: fitted.scores(features) for c, fitted in self.fits.items()}
        return {**scores, "shares": self.shares.expand(len(features), -1)}


def _log_shares(data: FitData) -> Tensor:
    """Return the logarithm of each class's share of the images, float64 [C]; every class has an image."""
    counts = torch.bincount(data.labels, minlength=data.num_classes).double()
    return (counts / counts.sum()).log()


class ZeroShot(Cosine):
    """The prompt ensemble: each class's mean normalised prompt."""

    name = "zero-shot"
    sentences = "prompts"
    knows_prior = True

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> ZeroShot:
        """Take the mean of each class's prompts."""
        assert data.texts is not None
        weight = class_means(data.texts.vectors, data.texts.labels, data.num_classes)
        return cls(weight=weight, scale=data.logit_scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class NearestSentences(Baseline):
    """KNN: votes of the k nearest sentences."""

    name = "knn"
    sentences = "all"
    reads_texts = True
    probabilities = False
    k: int
    text_fp: str

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> NearestSentences:
        """Choose k."""
        texts = data.texts
        assert texts is not None
        return data.choose(config.neighbours, lambda k, *_: cls(k=k, text_fp=texts.text_fp, texts=texts))

    def scores(self, features: Tensor) -> Tensor:
        """Return the votes [N, C]."""
        texts = self.texts
        assert texts is not None
        vectors = texts.vectors.to(features.device)
        return knn_sentence_logits(features, vectors, texts.labels, num_classes=texts.num_classes, k=self.k)


@dataclass(frozen=True, eq=False, kw_only=True)
class TipAdapter(Baseline):
    """Tip-Adapter: a cache of some images of each class, added to the prompt ensemble."""

    name = "tip-adapter"
    sentences = "prompts"
    keys: Tensor
    key_labels: Tensor
    prototypes: Tensor
    alpha: float
    beta: float
    scale: float

    @classmethod
    def fit(cls, data: FitData, config: BaselinesConfig, progress: Progress | None) -> TipAdapter:
        """Fill the cache, and choose alpha and beta."""
        assert data.texts is not None
        prototypes = class_means(data.texts.vectors, data.texts.labels, data.num_classes)

        def cache(features: Tensor, labels: Tensor) -> TipCache:
            places = first_of_each_class(labels, config.cache_images)
            return TipCache(features[places], labels[places], prototypes, data.logit_scale)

        alpha = config.alphas[len(config.alphas) // 2]
        beta = config.betas[len(config.betas) // 2]
        accuracy = None
        if len(data.seen):
            tried = cache(data.features[data.fitted], data.labels[data.fitted])
            (alpha, beta), accuracy = choose_tip(
                data.seen, data.seen_labels, tried, alphas=config.alphas, betas=config.betas
            )
        kept = cache(data.features, data.labels)
        return cls(
            keys=kept.keys,
            key_labels=kept.labels,
            prototypes=prototypes,
            alpha=alpha,
            beta=beta,
            scale=kept.scale,
            choice=Choice(data.chosen_on, accuracy),
        )

    def scores(self, features: Tensor) -> Tensor:
        """Return the logits [N, C]."""
        cache = TipCache(self.keys, self.key_labels, self.prototypes, self.scale)
        return tip_logits(features, cache, self.alpha, self.beta)


_CLASSES: tuple[type[Baseline], ...] = (
    NearestMean,
    ClassifierRetraining,
    TauNormalised,
    WeightScaling,
    Discriminant,
    Logistic,
    ZeroShot,
    NearestSentences,
    TipAdapter,
)
BY_NAME = {baseline.name: baseline for baseline in _CLASSES}
"""The baselines on stored features, in the order of `BASELINES`."""
