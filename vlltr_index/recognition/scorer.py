"""From image features to the probabilities of all classes: anchors, head, generative model and fusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from vlltr_index.errors import MissingStepError, UsageError
from vlltr_index.heads.configuration import TextLevel
from vlltr_index.heads.fusion import (
    FusedScores,
    Kinds,
    VisualScores,
    class_logits,
    fuse,
    fuse_protocol,
    log_frequencies,
    resting,
    visual_scores,
    with_prior,
)
from vlltr_index.heads.plda import PLDA, prior_means
from vlltr_index.heads.rejection import FEWEST_GROUPS, fit_parts, fit_scores
from vlltr_index.tensors import class_positions, unit_rows

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.checkpoint import Parts, SavedHead
    from vlltr_index.heads.tree import HeldOutAnswers
    from vlltr_index.recognition.state import Anchors, ClassStats
    from vlltr_index.schemas.config import FusionConfig

OTHER_RULE = 'Put rule = "ours" under [recipe.fusion] in vlltr.toml, then run: vlltr train lgr'
_BATCH = 512
_SCORES_AT_ONCE = 2**21  # images times classes: dozens of tensors of 8 MiB
_PASSES = 8
_NOT_FOUND = -1e5  # offset of a class of which nothing is known, below any score


@dataclass(frozen=True, eq=False)
class Scorer:
    """The part of a model that scores features [B, D] (unnormalised): class probabilities [B, C].

    The classes are those that have an anchor sentence or training images, ascending.

    Attributes:
        anchors: The anchors.
        saved: The trained head.
        stats: Statistics of the classes' images.
        fusion: The rule; `ours` only for a head with parts, see `ModelState.fusion`.
        merged: Id of each merged class, to the class it was merged into, which has its visual row now.
        offsets: Offset of added classes by class id; a class that is not listed has 0.
        log_prior: Float [C], the logarithm of each class's prior, see `under_prior`; None: the prior is uniform.
    """

    anchors: Anchors
    saved: SavedHead
    stats: ClassStats
    fusion: FusionConfig
    merged: Mapping[int, int]
    offsets: Mapping[int, float] = field(default_factory=dict, kw_only=True)
    log_prior: Tensor | None = field(default=None, kw_only=True)

    @property
    def bank(self) -> AnchorBank:
        """The anchors' vectors and classes."""
        return self.anchors.bank

    @cached_property
    def class_ids(self) -> Tensor:
        """The class of each column, int64 [C], ascending."""
        if self.saved.parts is None:
            return self.bank.class_ids
        there: Tensor = torch.unique(torch.cat([self.bank.class_ids, self.stats.class_ids]))
        return there

    @cached_property
    def plda(self) -> PLDA | None:
        """The generative model of the C classes; None for a head without parts of the rule `ours`."""
        if self.saved.parts is None:
            return None
        parts = self.saved.parts
        classes = len(self.class_ids)
        counts = self.stats.counts
        sums = self.stats.sums
        if not torch.equal(self.stats.class_ids, self.class_ids):
            at = class_positions(self.class_ids, self.stats.class_ids)
            counts = counts.new_zeros(classes).index_copy_(0, at, counts)
            sums = sums.new_zeros(classes, sums.shape[1]).index_copy_(0, at, sums)
        predicted = torch.zeros(classes, len(parts.shared.spread))
        if self.bank.num_classes:
            predicted[self._bank_columns] = self._told(parts)
        if parts.text_level == TextLevel.NONE:  # texts count for classes without images alone
            predicted = torch.where((counts > 0)[:, None], 0.0, predicted)
        trust = torch.where(self.trained, 1.0, parts.text_trust).double()
        return PLDA(parts.shared, counts, sums, predicted, trust, self._shifts(parts))

    def _told(self, parts: Parts) -> Tensor:
        """Return the prior means that texts give, [C_a, Z]: as the head has them, of classes with the same anchors."""
        if parts.shared.kernel is None:
            return prior_means(self.bank, parts.shared)
        if parts.told is None:
            return prior_means(self.anchors.with_words, parts.shared)
        at = class_positions(parts.told.class_ids, self.bank.class_ids)
        told = parts.told.means[at]
        others = ((at < 0) | (parts.told.digests[at] != self.anchors.digests)).nonzero()[:, 0]
        if len(others):
            told[others] = prior_means(self.anchors.of_classes(others), parts.shared)
        return told

    def _shifts(self, parts: Parts) -> Tensor | None:
        """Return `PLDA.shifts`, zero for classes that the model was not fitted on."""
        if parts.shifts is None or not len(parts.shifts):
            return None
        at = class_positions(self.saved.class_ids, self.class_ids)
        return torch.where(at[:, None] >= 0, parts.shifts[at], 0.0)

    @property
    def row_owners(self) -> Tensor:
        """Class id of each visual row after merges, int64 [C_v]."""
        if not self.merged:
            return self.saved.class_ids
        return torch.tensor([self.merged.get(i, i) for i in self.saved.class_ids.tolist()])

    @property
    def trained(self) -> Tensor:
        """Mask of the classes that the head was trained on, bool [C]."""
        return torch.isin(self.class_ids, self.row_owners)

    @cached_property
    def kinds(self) -> Kinds:
        """The kinds of the classes; without a generative model, trained ones and others."""
        trained = self.trained
        return Kinds.of(trained, trained if self.plda is None else self.plda.counts > 0)

    def visual_sides(self) -> dict[int, str]:
        """Return how images of each class are used: `trained` on them, or later `images`; classes without are left
        out."""
        later = self.stats.class_ids.tolist() if self.saved.parts is not None else []
        return dict.fromkeys(later, "images") | dict.fromkeys(self.row_owners.tolist(), "trained")

    def with_rule(self, fusion: FusionConfig) -> Self:
        """Return the same model with another fusion rule.

        Raises:
            MissingStepError: If the rule is `ours` and the head was trained for another protocol.
        """
        if fusion.rule == "ours" and self.saved.parts is None:
            raise MissingStepError(
                "this head was trained for the protocols paper or release: it has no weights for the rule 'ours'",
                OTHER_RULE,
            )
        return replace(self, fusion=fusion)

    @property
    def training_frequencies(self) -> Tensor:
        """The logarithm of how common each class is among the units of the training images, float64 [C].

        An added class has the mean of the base classes, for its few images are no frequency.

        Raises:
            MissingStepError, UsageError: As for `under_prior`.
        """
        self._with_weights()
        assert self.plda is not None
        known = log_frequencies(self.plda.counts)
        trained = self.trained
        if not bool(trained.any()):
            return torch.zeros_like(known)
        known[~trained] = known[trained].mean()
        return known

    def under_prior(self, log_frequency: Tensor) -> Self:
        """Return the same model under a class prior.

        The answers on held-out images are those under this prior, too.

        Args:
            log_frequency: Float [C], up to a constant.

        Raises:
            MissingStepError: If the head was trained for another protocol.
            UsageError: If another rule than `ours` was asked for.
        """
        parts = self._with_weights()
        held = parts.held_out
        if held is not None:
            rows = class_positions(self.class_ids, self.row_owners)
            known = torch.where(
                rows >= 0, log_frequency[rows], -torch.inf
            )  # a class that is gone is no answer
            held = held.under_prior(known)
        saved = replace(self.saved, parts=replace(parts, held_out=held))
        found = replace(self, saved=saved, log_prior=log_frequency)
        found.__dict__["plda"] = self.plda  # the same; it places itself
        return found

    def _with_weights(self) -> Parts:
        """Return the head's parts, for the rule `ours`; errors as for `under_prior`."""
        if self.saved.parts is None:
            what = "this head knows no prior: it was trained for the protocols paper or release"
            raise MissingStepError(what, OTHER_RULE)
        if self.fusion.rule != "ours":
            raise UsageError(
                f"the rule {self.fusion.rule!r} knows no prior", "Leave out: --rule, or --prior."
            )
        return self.saved.parts

    def text_weights(self, column: int) -> tuple[float, float] | None:
        """Return the weights of a class's text logit and log-likelihood; None under another rule than `ours`."""
        if self.saved.parts is None or self.fusion.rule != "ours":
            return None
        weights = self.saved.parts.weights
        factor = weights.combined if self.trained[column] else 1.0
        return factor * weights.text, factor * weights.generative

    @cached_property
    def offset(self) -> Tensor:
        """The offset of each class, float64 [C]: 0 for base classes."""
        found = torch.tensor([self.offsets.get(i, 0.0) for i in self.class_ids.tolist()], dtype=torch.float64)
        if self.saved.texts_are_mute:
            found[self.kinds.text_only] = _NOT_FOUND
        return found

    def held_out(self, what: str) -> tuple[float, HeldOutAnswers]:
        """Return the acceptance level and the answers on the images held out in training; see `Parts`.

        Args:
            what: The question that they are to answer, for the error message.

        Raises:
            MissingStepError: If too few images were held out.
        """
        lacking = f"this head cannot say {what}: "
        if self.saved.parts is None:
            raise MissingStepError(f"{lacking}it was trained for the protocols paper or release", OTHER_RULE)
        level = self.saved.parts.ood_threshold
        answers = self.saved.parts.held_out
        if level is None or answers is None:
            raise MissingStepError(
                f"{lacking}fewer than {FEWEST_GROUPS} groups of images were held out when it was trained",
                "Bring in more images, then run: vlltr train lgr",
            )
        return level, answers

    def visual_logits(self, features: Tensor) -> Tensor:
        """Return the visual classifier's logits [B, C], minus infinity for a class without a row."""
        rows = self.saved.head.visual_logits(features)
        if self._row_columns is None:
            return rows
        return class_logits(rows, self._row_columns, len(self.class_ids))

    @cached_property
    def _row_columns(self) -> Tensor | None:
        """Column of each visual row, -1 if its class is gone, int64 [C_v]; None where every class has one, in order."""
        owners = self.row_owners
        return None if torch.equal(owners, self.class_ids) else class_positions(self.class_ids, owners)

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Return the generative model's log-likelihoods [B, C] of features [B, D], which are normalised first."""
        assert self.plda is not None
        return self.plda.log_likelihoods(unit_rows(features))

    def fits(self, features: Tensor) -> Tensor:
        """Return how well features [B, D] fit the classes, float [B], see `rejection.fit_parts`."""
        assert self.plda is not None
        assert self.saved.parts is not None
        return fit_scores(fit_parts(self.plda, unit_rows(features)), self.saved.parts.ratio_weight)

    def visual_scores(self, features: Tensor) -> VisualScores:
        """Score features without attention: z under `ours`, else the linear classifier's logits."""
        base = self.kinds.trained.to(features.device, non_blocking=True)
        offset = self.offset.to(features.device, torch.float32, non_blocking=True)
        if self.saved.parts is None or self.fusion.rule != "ours":
            logits = self.visual_logits(features)
            return VisualScores(logits, logits, logits, None, base, offset)
        assert self.plda is not None
        weights = self.saved.parts.weights
        generative = weights.generative * self.log_likelihoods(features)
        plain = self.plda.without_text
        wordless = generative
        if plain is not self.plda:
            wordless = weights.generative * plain.log_likelihoods(unit_rows(features))
        linear = weights.image * self.visual_logits(features)[:, base] if weights.image else None
        return visual_scores(generative, wordless, linear, base, offset, weights.combined)

    def text_logits(self, features: Tensor) -> Tensor:
        """Return text logits [B, C]; a class without anchors gets the mean of the others."""
        return self.whole(self.saved.head.text_logits(features, self.bank))

    def whole(self, bank_logits: Tensor) -> Tensor:
        """Expand text logits of the anchors' classes [B, C_a] to all classes [B, C]."""
        if self.bank.num_classes == len(self.class_ids):
            return bank_logits
        missing = bank_logits.mean(1, keepdim=True).nan_to_num()  # NaN if no class has an anchor
        logits = missing.expand(-1, len(self.class_ids)).clone()
        logits[:, self._bank_columns] = bank_logits
        return logits

    @cached_property
    def _bank_columns(self) -> Tensor:
        """Column of each class that has anchors, int64 [C_a]."""
        return class_positions(self.class_ids, self.bank.class_ids)

    def fuse(self, image: VisualScores, text_logits: Tensor) -> FusedScores:
        """Fuse the visual side's scores and text logits [B, C] into one distribution."""
        if self.fusion.rule != "ours":
            return fuse_protocol(image.scores, text_logits, self.fusion.rule, self.fusion.alpha)
        assert self.saved.parts is not None
        fused = fuse(image, text_logits, self.saved.parts.weights)
        return fused if self.log_prior is None else with_prior(fused, self.log_prior)

    def resting(self, image: VisualScores, text_logits: Tensor) -> tuple[FusedScores, Tensor]:
        """Return fused scores, and how much of an answer depends on each class's text logit, [B, C]."""
        fused = self.fuse(image, text_logits)
        if self.fusion.rule == "paper":
            return fused, fused.text_part
        if self.fusion.rule == "logits":
            return fused, fused.probabilities
        assert self.saved.parts is not None
        return fused, resting(image, text_logits, fused.probabilities, self.saved.parts.weights)

    @torch.inference_mode()
    def exhaustive(self, features: Tensor) -> FusedScores:
        """Score features [B, D] against every class."""
        return FusedScores.joined(self._scores(features), len(features))

    def _scores(self, features: Tensor) -> Iterator[FusedScores]:
        """Score features, some at a time: of more at once by the anchors, which are read for each of these parts."""
        at_once = self.images_at_once
        for some in features.split(_PASSES * at_once):
            texts = self.text_logits(some)
            for part, text in zip(some.split(at_once), texts.split(at_once), strict=True):
                yield self.fuse(self.visual_scores(part), text)

    @property
    def images_at_once(self) -> int:
        """How many images are scored at once, for memory."""
        return max(1, min(_BATCH, _SCORES_AT_ONCE // max(1, len(self.class_ids))))
