"""Score image features by a commit's anchors, head, generative model and fusion; and the tree above its classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.embedding.loading import ClassStats, LoadedBank, class_stats, load_bank
from vlltr_index.errors import FingerprintMismatch, MissingStepError
from vlltr_index.heads.checkpoint import SavedHead, load_head
from vlltr_index.heads.fusion import (
    FusedScores,
    ImageSide,
    class_logits,
    fuse,
    fuse_protocol,
    image_side,
    resting,
)
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.tree import ClassTree, HeldOutAnswers, grow, least_needed, thresholds
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.store.class_table import ClassTable
from vlltr_index.tensors import class_positions, unit_rows
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.taxonomy import Taxonomy

_log = logging.getLogger(__name__)

NO_TREE = "no class has a parent", "Say what lies below what: vlltr ingest classes FILE"
OTHER_RULE = 'Put rule = "ours" under [recipe.fusion] in vlltr.toml, then run: vlltr train lgr'
_BATCH = 512


@dataclass(frozen=True)
class Scorer:
    """Everything that turns image features [B, D] (unnormalised) into class probabilities [B, C].

    The classes are those that have an anchor sentence or training images, ascending. Make it with `build`.

    Attributes:
        loaded: The anchors.
        saved: The trained head.
        stats: Statistics of the classes' images.
        class_ids: int64 [C], the class of each column.
        model: The generative model of the C classes; None for a head without parts of the rule `ours`.
        fusion: The rule.
        merged: Id of each merged class, to the class it was merged into, which has its visual row now.
    """

    loaded: LoadedBank
    saved: SavedHead
    stats: ClassStats
    class_ids: Tensor
    model: PLDA | None
    fusion: FusionConfig
    merged: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        loaded: LoadedBank,
        saved: SavedHead,
        stats: ClassStats,
        fusion: FusionConfig,
        merged: Mapping[int, int],
    ) -> Scorer:
        """Build a scorer from its parts; a head without parts of the rule `ours` uses the rule `paper`."""
        bank = loaded.bank
        if saved.parts is None:
            rule = "paper" if fusion.rule == "ours" else fusion.rule
            fusion = fusion.model_copy(update={"rule": rule})
            return cls(loaded, saved, stats, bank.class_ids, model=None, fusion=fusion, merged=merged)
        class_ids = torch.unique(torch.cat([bank.class_ids, stats.class_ids]))
        counts = torch.zeros(len(class_ids), dtype=torch.int64)
        sums = torch.zeros(len(class_ids), saved.head.dim, dtype=torch.float64)
        prototypes = torch.zeros(len(class_ids), saved.head.dim)
        at = class_positions(class_ids, stats.class_ids)
        counts[at] = stats.counts
        sums[at] = stats.sums
        prototypes[class_positions(class_ids, bank.class_ids)] = bank.prototypes(True).float()
        model = PLDA(saved.parts.shared, counts, sums, prototypes)
        return cls(loaded, saved, stats, class_ids, model=model, fusion=fusion, merged=merged)

    @property
    def bank(self) -> AnchorBank:
        """The anchors."""
        return self.loaded.bank

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

    def visual_sides(self) -> dict[int, str]:
        """Return how images of each class are used: `trained` on them, or later `images`; classes without are left
        out."""
        later = self.stats.class_ids.tolist() if self.model is not None else []
        return dict.fromkeys(later, "images") | dict.fromkeys(self.row_owners.tolist(), "trained")

    def visual_logits(self, features: Tensor) -> Tensor:
        """Return the visual classifier's logits [B, C], minus infinity for a class without a row."""
        rows = self.saved.head.visual_logits(features)
        owners = self.row_owners
        if torch.equal(owners, self.class_ids):  # the usual case: every class has a row, in order
            return rows
        return class_logits(rows, class_positions(self.class_ids, owners), len(self.class_ids))

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Return the generative model's log-likelihoods [B, C] of features [B, D], which are normalised first."""
        assert self.model is not None
        return self.model.log_likelihoods(unit_rows(features))

    def image_side(self, features: Tensor) -> ImageSide:
        """Score features by the visual side: log-scores under `ours`, else the visual classifier's logits."""
        if self.saved.parts is None or self.fusion.rule != "ours":
            logits = self.visual_logits(features)
            return ImageSide(logits, logits, self.trained, self.trained)
        assert self.model is not None
        weights = self.saved.parts.weights
        likelihoods = self.log_likelihoods(features)
        visual = self.visual_logits(features) if weights.image else likelihoods
        return image_side(visual, likelihoods, self.trained, self.model.counts > 0, weights=weights)

    def text_logits(self, features: Tensor) -> Tensor:
        """Return text logits [B, C]; a class without anchors gets the mean of the others."""
        if not self.bank.num_classes:
            return self.whole(features.new_zeros(len(features), 0))
        return self.whole(self.saved.head.text_logits(features, self.bank))

    def whole(self, bank_logits: Tensor) -> Tensor:
        """Expand text logits of the anchors' classes [B, C_a] to all classes [B, C]."""
        if self.bank.num_classes == len(self.class_ids):
            return bank_logits
        missing = bank_logits.mean(1, keepdim=True).nan_to_num()  # NaN if no class has an anchor
        logits = missing.expand(-1, len(self.class_ids)).clone()
        logits[:, class_positions(self.class_ids, self.bank.class_ids)] = bank_logits
        return logits

    def fuse(self, image: ImageSide, text_logits: Tensor) -> FusedScores:
        """Fuse the visual side's scores and text logits [B, C] into one distribution."""
        if self.fusion.rule != "ours":
            return fuse_protocol(image.scores, text_logits, self.fusion.rule, self.fusion.alpha)
        assert self.saved.parts is not None
        return fuse(image, text_logits, self.saved.parts.weights)

    def resting(self, image: ImageSide, text_logits: Tensor) -> tuple[FusedScores, Tensor]:
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
        """Score features [B, D] against every class, in batches."""
        parts = [self.fuse(self.image_side(part), self.text_logits(part)) for part in features.split(_BATCH)]
        return FusedScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def held_out(self, what: str) -> tuple[float, HeldOutAnswers]:
        """Return the acceptance level and the answers on the images held out in training; see `Parts`.

        Args:
            what: The question that they are to answer, for the error message.

        Raises:
            MissingStepError: If no image was held out.
        """
        lacking = f"this head cannot say {what}: "
        if self.saved.parts is None:
            raise MissingStepError(f"{lacking}it was trained for the protocols paper or release", OTHER_RULE)
        level = self.saved.parts.accept_above
        answers = self.saved.parts.held_out
        if level is None or answers is None:
            raise MissingStepError(
                f"{lacking}no image could be held out when it was trained",
                "Bring in more images, then run: vlltr train lgr",
            )
        return level, answers

    def ranks_holding(self, tree: ClassTree, columns: Tensor, min_accuracy: float) -> dict[str, float]:
        """Find the ranks that held an accuracy on the images held out from training.

        Returns:
            The least probability of an answer of each. How many of the held-out images they answer, their coverage,
            is logged.

        Args:
            tree: The tree above the classes that may be the answer.
            columns: Int64 [C], the columns of these classes.
            min_accuracy: The accuracy, between 0 and 1.

        Raises:
            MissingStepError: If no image was held out.
        """
        classes = self.class_ids[columns]
        owners = self.row_owners
        _, answers = self.held_out("which rank held")
        answers = answers.among(class_positions(classes, owners), len(columns))
        images = len(answers.labels)
        least = thresholds(tree, answers, min_accuracy)
        told = ", ".join(f"{rank} from {100 * value:.0f} %" for rank, value in least.items()) or "none"
        if images < (needed := least_needed(min_accuracy)):
            told += f" (it takes {needed} at least)"
        later = int((class_positions(owners, classes) < 0).sum())
        if later:
            told += f"; {many(later, 'class', 'classes')} that came later had no part in it"
        answered = tree.answers(tree.sums(answers.probabilities.float()), least) >= 0
        _log.info(
            "%d images were held out; ranks that held %g %% on them: %s; they answer %.0f %% of these images",
            images,
            100 * min_accuracy,
            told,
            100 * float(answered.double().mean()) if images else 0.0,
        )
        return least

    def with_rule(self, fusion: FusionConfig) -> Scorer:
        """Return the same scorer with another fusion rule.

        Raises:
            MissingStepError: If the rule is `ours` and the head was trained for another protocol.
        """
        if fusion.rule == "ours" and self.saved.parts is None:
            raise MissingStepError(
                "this head was trained for the protocols paper or release: it has no weights for the rule 'ours'",
                OTHER_RULE,
            )
        return replace(self, fusion=fusion)


def load_scorer(snapshot: Snapshot) -> Scorer:
    """Load what a commit names.

    Raises:
        MissingStepError: If anchors or head are not there yet.
        WorkspaceError: If the head's files are damaged.
        FingerprintMismatch: If the head was trained on another encoder's vectors.
    """
    loaded = load_bank(snapshot)
    commit = snapshot.commit
    if not commit.head:
        raise MissingStepError("no head has been trained yet", "Run: vlltr train lgr")
    saved = load_head(snapshot.objects.whole("heads", commit.head))
    mine = (saved.text_fp, saved.image_fp)
    theirs = (commit.text_fp, commit.image_fp)
    if mine != theirs:
        raise FingerprintMismatch(
            f"the head was trained on vectors of the towers {mine}, the workspace's are of {theirs}",
            "Train it again: vlltr train lgr",
        )
    stats = class_stats(snapshot, saved.head.dim)
    fusion = commit.fusion or snapshot.recipe.fusion
    return Scorer.build(loaded, saved, stats, fusion, commit.info.merged)


def tree_above(taxonomy: Taxonomy, names: list[str]) -> ClassTree:
    """Build the tree above classes, given by name in the order of the columns."""
    parents = {name: taxon.parent for name, taxon in taxonomy.items()}
    ranks = {name: taxon.rank for name, taxon in taxonomy.items()}
    return grow(parents, ranks, names)


def classes_below(tree: ClassTree, classes: ClassTable, name: str) -> set[int]:
    """Return the columns of the classes below a node, given by its name or an alias of its class.

    Raises:
        UnknownClassError: If there is no such node, naming close ones.
    """
    nodes = ClassTable(dict(enumerate(tree.names)), {})
    known = None
    if name not in tree.names:
        known = classes.find(name)
    return set(tree.below(nodes.lookup(name if known is None else classes.names[known])).tolist())
