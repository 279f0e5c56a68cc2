"""The rules by which images and texts give one answer, over the classes of one model; see `heads.fusion`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from torch import Tensor

from vlltr_index.errors import MissingStepError, UsageError
from vlltr_index.heads.explanation import ClassExplanation, explain_class, explain_prior
from vlltr_index.heads.fusion import (
    FusedScores,
    Rule,
    VisualScores,
    class_logits,
    fuse,
    fuse_protocol,
    log_frequencies,
    resting,
    visual_scores,
    with_prior,
)
from vlltr_index.heads.rejection import FEWEST_GROUPS, fit_parts, fit_scores
from vlltr_index.heads.text_prior import sentence_features
from vlltr_index.recognition.parameters import OTHER_RULE, ClassParameters
from vlltr_index.tensors import class_positions, unit_rows

if TYPE_CHECKING:
    from vlltr_index.heads.checkpoint import RuleParameters
    from vlltr_index.heads.tree import HeldOutAnswers
    from vlltr_index.schemas.config import FusionConfig

_EXPLAINED = 256  # classes whose sentences' prior means are kept
_NOT_FOUND = -1e5  # offset of a class of which nothing is known, below any score


class FusionRule(ABC):
    """How visual scores and text logits of B images become the answer among C classes.

    Attributes:
        name: The rule.
        known: What is known of the classes.
    """

    name: Rule
    known: ClassParameters

    @property
    def attends(self) -> bool:
        """Whether attention over sentences has a weight in some answer."""
        return True

    @property
    def correlation(self) -> float:
        """How alike the answers in a group are, see `pooling.together`."""
        return 1.0

    @property
    def threshold(self) -> float | None:
        """The threshold of rejection, see `rejection`; None where nothing can be rejected."""
        return None

    @property
    def text_only(self) -> Tensor:
        """Columns of the classes that have a score, and none by images, int64."""
        return torch.empty(0, dtype=torch.int64)

    @property
    def unit(self) -> Literal["probability", "log-odds"]:
        """The unit of contributions to an answer."""
        return "probability" if self.name == "paper" else "log-odds"

    @abstractmethod
    def visual_scores(self, features: Tensor) -> VisualScores:
        """Score features [B, D], unnormalised, without attention."""

    @abstractmethod
    def fuse(self, image: VisualScores, text_logits: Tensor) -> FusedScores:
        """Fuse the visual scores and text logits [B, C] into one distribution."""

    @abstractmethod
    def resting(self, image: VisualScores, text_logits: Tensor) -> tuple[FusedScores, Tensor]:
        """Return fused scores, and how much of an answer depends on each class's text logit, [B, C]."""

    def explain(self, feature: Tensor, place: int) -> ClassExplanation:
        """Explain the text score of one class for one image, on the CPU.

        Args:
            feature: Float [D], unnormalised.
            place: The class's position in the bank.
        """
        return explain_class(self.known.saved.head, self.known.bank, place, feature)

    @abstractmethod
    def training_frequencies(self) -> Tensor:
        """Return the logarithm of how common each class is among the groups of the training images, float64 [C].

        Raises:
            MissingStepError: The head was trained for another protocol.
            UsageError: The rule knows no prior.
        """

    @abstractmethod
    def known_scores(self, features: Tensor) -> Tensor:
        """Return how well features [B, D] fit the classes, float [B], see `rejection.fit_parts`."""

    @abstractmethod
    def held_out(self, what: str) -> tuple[float, HeldOutAnswers]:
        """Return the threshold of rejection and the answers on the images held out in training; see `RuleParameters`.

        Args:
            what: The question that they are to answer, for the error message.

        Raises:
            MissingStepError: If too few images were held out.
        """

    def linear_logits(self, features: Tensor) -> Tensor:
        """Return the linear classifier's logits [B, C], minus infinity for a class without a row."""
        rows = self.known.on(features.device).head.visual_logits(features)
        columns = self.known.row_columns
        return rows if columns is None else class_logits(rows, columns, len(self.known.class_ids))


@dataclass(frozen=True, eq=False)
class ProtocolRule(FusionRule):
    """The rules `paper` and `logits`.

    Attributes:
        name: Which of both.
        known: What is known of the classes.
        alpha: Weight of the visual branch under `paper`.
    """

    name: Literal["paper", "logits"]
    known: ClassParameters
    alpha: float

    def visual_scores(self, features: Tensor) -> VisualScores:
        """Return the linear classifier's logits, which no offset shifts."""
        logits = self.linear_logits(features)
        nothing = torch.empty(0, dtype=torch.int64)
        return VisualScores(logits, logits, logits, None, nothing, logits.new_zeros(logits.shape[1]))

    def fuse(self, image: VisualScores, text_logits: Tensor) -> FusedScores:
        """Fuse as the protocol does."""
        return fuse_protocol(image.scores, text_logits, self.name, self.alpha)

    def resting(self, image: VisualScores, text_logits: Tensor) -> tuple[FusedScores, Tensor]:
        """Return fused scores and the part of each answer that texts give."""
        fused = self.fuse(image, text_logits)
        return fused, fused.text_part if self.name == "paper" else fused.probabilities

    def training_frequencies(self) -> Tensor:
        """Refuse: these rules know no prior."""
        self._refuse("knows no prior", "Leave out: --rule, or --prior.")

    def known_scores(self, features: Tensor) -> Tensor:
        """Refuse: these rules reject nothing."""
        self._refuse("cannot say 'none of these'", "Leave out: --rule.")

    def held_out(self, what: str) -> tuple[float, HeldOutAnswers]:
        """Refuse: there are no answers by these rules on held-out images."""
        self._refuse(f"cannot say {what}", "Leave out: --rule.")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        if self.known.saved.parts is None:
            raise MissingStepError(
                f"this head {what}: it was trained for the protocols paper or release", OTHER_RULE
            )
        raise UsageError(f"the rule {self.name!r} {what}", hint)


@dataclass(frozen=True, eq=False)
class OursRule(FusionRule):
    """The rule `ours`: PLDA, attention over sentences, the linear classifier, offsets of added classes, and a prior.

    Attributes:
        name: `ours`.
        known: What is known of the classes.
        parts: The rule's parameters, of the head.
        offsets: Offset of added classes by class id; a class that is not listed has 0.
        log_prior: Float [C], the logarithm of each class's prior up to a constant; None: the prior is uniform.
    """

    known: ClassParameters
    parts: RuleParameters
    offsets: Mapping[int, float]
    log_prior: Tensor | None
    name: Literal["ours"] = "ours"

    @property
    def attends(self) -> bool:
        """Whether attention over sentences has a weight."""
        return bool(self.parts.weights.text)

    @property
    def correlation(self) -> float:
        """The intraclass correlation of the answers in a group."""
        return self.parts.correlation

    @property
    def threshold(self) -> float | None:
        """The score that 95% of held-out groups reach; None where too few were held out."""
        return self.parts.ood_threshold

    @property
    def text_only(self) -> Tensor:
        """Columns of the added classes without images."""
        return self.known.text_only

    def visual_scores(self, features: Tensor) -> VisualScores:
        """Score features [B, D], unnormalised: z without attention."""
        known = self.known
        weights = self.parts.weights
        base = known.base_columns.to(features.device, non_blocking=True)
        offset = self.offset.to(features.device, torch.float32, non_blocking=True)
        unit = unit_rows(features)
        generative = weights.generative * known.plda.log_likelihoods(unit)
        plain = known.plda.without_text
        wordless = generative
        if plain is not known.plda:
            wordless = weights.generative * plain.log_likelihoods(unit)
        linear = weights.image * self.linear_logits(features)[:, base] if weights.image else None
        return visual_scores(generative, wordless, linear, base, offset, weights.combined)

    @cached_property
    def offset(self) -> Tensor:
        """The offset of each class, float64 [C]: 0 for base classes."""
        ids = self.known.class_ids.tolist()
        found = torch.tensor([self.offsets.get(i, 0.0) for i in ids], dtype=torch.float64)
        if self.parts.texts_are_mute:
            found[self.known.text_only] = _NOT_FOUND
        return found

    def fuse(self, image: VisualScores, text_logits: Tensor) -> FusedScores:
        """Fuse both sides under the prior."""
        fused = fuse(image, text_logits, self.parts.weights)
        return fused if self.log_prior is None else with_prior(fused, self.log_prior)

    def resting(self, image: VisualScores, text_logits: Tensor) -> tuple[FusedScores, Tensor]:
        """Return fused scores, and how much of an answer depends on each class's text logit, [B, C]."""
        fused = self.fuse(image, text_logits)
        return fused, resting(image, text_logits, fused.probabilities, self.parts.weights)

    def explain(self, feature: Tensor, place: int) -> ClassExplanation:
        """Explain the text score of one class for one image, by attention and by the prior of its mean."""
        column = int(self.known.bank_columns[place])
        by_prior = explain_prior(self.known.plda, column, self._sentence_means(place, column), feature)
        weights = self.parts.weights
        factor = weights.combined if self.known.trained[column] else 1.0
        found = super().explain(feature, place)
        return found.weighed(factor * weights.text, factor * weights.generative, by_prior)

    def _sentence_means(self, place: int, column: int) -> Tensor:
        """Return the prior mean by each sentence of a class alone, [M, Z]."""
        found = self._kept_means.get(place)
        if found is None:
            shared = self.parts.shared
            at = torch.tensor([place])
            anchors = self.known.anchors
            bank = anchors.bank.select(at) if shared.kernel is None else anchors.of_classes(at)
            means = shared.tell(sentence_features(bank, slice(None), shared.kernel))
            found = self.known.plda.map_sentences(column, means)
            if len(self._kept_means) >= _EXPLAINED:
                self._kept_means.clear()
            self._kept_means[place] = found
        return found

    @cached_property
    def _kept_means(self) -> dict[int, Tensor]:
        return {}

    def training_frequencies(self) -> Tensor:
        """Return the logarithm of how common each class is among the groups of the training images, float64 [C].

        An added class has the mean of the base classes, for its few images are no frequency.
        """
        frequencies = log_frequencies(self.known.counts)
        trained = self.known.trained
        if not bool(trained.any()):
            return torch.zeros_like(frequencies)
        frequencies[~trained] = frequencies[trained].mean()
        return frequencies

    def known_scores(self, features: Tensor) -> Tensor:
        """Return how well features [B, D] fit the classes, float [B], see `rejection.fit_parts`."""
        return fit_scores(fit_parts(self.known.plda, unit_rows(features)), self.parts.ratio_weight)

    def held_out(self, what: str) -> tuple[float, HeldOutAnswers]:
        """Return the threshold of rejection and the answers on held-out images, under the prior."""
        level = self.parts.ood_threshold
        answers = self.parts.held_out
        if level is None or answers is None:
            raise MissingStepError(
                f"this head cannot say {what}: fewer than {FEWEST_GROUPS} groups of images were held out when it was"
                " trained",
                "Bring in more images, then run: vlltr train lgr",
            )
        if self.log_prior is None:
            return level, answers
        rows = class_positions(self.known.class_ids, self.known.row_owners)
        prior = torch.where(rows >= 0, self.log_prior[rows], -torch.inf)  # a removed class is no answer
        return level, answers.under_prior(prior)


def rule_for(
    fusion: FusionConfig, known: ClassParameters, offsets: Mapping[int, float], log_prior: Tensor | None
) -> FusionRule:
    """Return a rule over the classes of a model.

    Raises:
        MissingStepError: The rule is `ours` and the head was trained for another protocol.
    """
    if fusion.rule == "ours":
        return OursRule(known, known.parts, offsets, log_prior)
    return ProtocolRule(fusion.rule, known, fusion.alpha)
