"""What a model knows of its classes: anchors, the trained head, statistics of images, and the PLDA made of these."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.embedding.loading import numbers
from vlltr_index.errors import FingerprintMismatch, MissingStepError
from vlltr_index.heads.checkpoint import SavedHead, load_head
from vlltr_index.heads.configuration import TextLevel
from vlltr_index.heads.plda import PLDA, prior_means
from vlltr_index.store.parts import BESIDE_VECTORS
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.checkpoint import RuleParameters
    from vlltr_index.heads.lgr import LGRHead
    from vlltr_index.recognition.anchors import Anchors
    from vlltr_index.store.snapshot import ModelSource

OTHER_RULE = 'Put rule = "ours" under [recipe.fusion] in vlltr.toml, then run: vlltr train lgr'


@dataclass(frozen=True, eq=False)
class ClassStats:
    """Statistics of the training images of S classes.

    Attributes:
        class_ids: Int64 [S], ascending.
        counts: Int64 [S], number of observations that the images count as, see `heads.moments`.
        sums: Float64 [S, D], weighted sum of the images' normalised vectors.
    """

    class_ids: Tensor
    counts: Tensor
    sums: Tensor


class Placed(NamedTuple):
    """The head and the anchors on the device that images are scored on; class ids stay on the CPU."""

    head: LGRHead
    bank: AnchorBank


@dataclass(frozen=True, eq=False)
class ClassParameters:
    """What is known of the C classes that have an anchor sentence or training images.

    Attributes:
        anchors: The anchors.
        saved: The trained head.
        stats: Statistics of the classes' images.
        merged: Id of each merged class, to the class it was merged into, which has its visual row now.
    """

    anchors: Anchors
    saved: SavedHead
    stats: ClassStats
    merged: Mapping[int, int]

    @property
    def bank(self) -> AnchorBank:
        """The anchors' vectors and classes."""
        return self.anchors.bank

    @cached_property
    def class_ids(self) -> Tensor:
        """The class of each column, int64 [C], ascending; a head of another protocol knows those with anchors."""
        if self.saved.parts is None:
            return self.bank.class_ids
        there: Tensor = torch.unique(torch.cat([self.bank.class_ids, self.stats.class_ids]))
        return there

    @cached_property
    def row_owners(self) -> Tensor:
        """Class id of each visual row after merges, int64 [C_v]."""
        if not self.merged:
            return self.saved.class_ids
        return torch.tensor([self.merged.get(i, i) for i in self.saved.class_ids.tolist()])

    @cached_property
    def row_columns(self) -> Tensor | None:
        """Column of each visual row, -1 if its class is gone, int64 [C_v]; None where every class has one, in order."""
        owners = self.row_owners
        return None if torch.equal(owners, self.class_ids) else class_positions(self.class_ids, owners)

    @cached_property
    def bank_columns(self) -> Tensor:
        """Column of each class that has anchors, int64 [C_a]."""
        return class_positions(self.class_ids, self.bank.class_ids)

    @cached_property
    def trained(self) -> Tensor:
        """Mask of the classes that the head was trained on, bool [C]."""
        return torch.isin(self.class_ids, self.row_owners)

    @cached_property
    def base_columns(self) -> Tensor:
        """Columns of the classes that the head was trained on, int64, on the CPU, so that no GPU is waited for."""
        return self.trained.nonzero()[:, 0]

    @cached_property
    def text_only(self) -> Tensor:
        """Columns of the added classes without images, int64, on the CPU."""
        known = self.trained
        if self.saved.parts is not None:
            known = known | (self.counts > 0)
        return (~known).nonzero()[:, 0]

    @cached_property
    def counts(self) -> Tensor:
        """Number of observations of each class, [C]."""
        return self._by_column(self.stats.counts)

    def _by_column(self, values: Tensor) -> Tensor:
        """Spread statistics [S, ...] over the classes, [C, ...], zero for those without images."""
        if torch.equal(self.stats.class_ids, self.class_ids):
            return values
        at = class_positions(self.class_ids, self.stats.class_ids)
        return values.new_zeros(len(self.class_ids), *values.shape[1:]).index_copy_(0, at, values)

    def visual_sides(self) -> dict[int, str]:
        """Return how images of each class are used: `trained` on them, or later `images`; classes without are left
        out."""
        later = self.stats.class_ids.tolist() if self.saved.parts is not None else []
        return dict.fromkeys(later, "images") | dict.fromkeys(self.row_owners.tolist(), "trained")

    @property
    def parts(self) -> RuleParameters:
        """The head's parameters for the rule `ours`.

        Raises:
            MissingStepError: The head was trained for another protocol.
        """
        if self.saved.parts is None:
            raise MissingStepError(
                "this head was trained for the protocols paper or release: it has no weights for the rule 'ours'",
                OTHER_RULE,
            )
        return self.saved.parts

    @cached_property
    def plda(self) -> PLDA:
        """The PLDA of the C classes; errors as for `parts`."""
        parts = self.parts
        counts = self.counts
        predicted = torch.zeros(len(self.class_ids), len(parts.shared.spread))
        if self.bank.num_classes:
            predicted[self.bank_columns] = self._prior_means(parts)
        if parts.text_level == TextLevel.NONE:  # texts count for classes without images alone
            predicted = torch.where((counts > 0)[:, None], 0.0, predicted)
        trust = torch.where(self.trained, 1.0, parts.text_trust).double()
        return PLDA(
            parts.shared, counts, self._by_column(self.stats.sums), predicted, trust, self._shifts(parts)
        )

    def _prior_means(self, parts: RuleParameters) -> Tensor:
        """Return the prior means that texts give, [C_a, Z]: as the head has them, of classes with the same anchors."""
        if parts.shared.kernel is None:
            return prior_means(self.bank, parts.shared)
        if parts.told is None:
            return prior_means(self.anchors.with_words, parts.shared)
        at = class_positions(parts.told.class_ids, self.bank.class_ids)
        means = parts.told.means[at]
        others = ((at < 0) | (parts.told.digests[at] != self.anchors.digests)).nonzero()[:, 0]
        if len(others):
            means[others] = prior_means(self.anchors.of_classes(others), parts.shared)
        return means

    def _shifts(self, parts: RuleParameters) -> Tensor | None:
        """Return `PLDA.shifts`, zero for classes that the model was not fitted on."""
        if parts.shifts is None or not len(parts.shifts):
            return None
        at = class_positions(self.saved.class_ids, self.class_ids)
        return torch.where(at[:, None] >= 0, parts.shifts[at], 0.0)

    def on(self, device: torch.device) -> Placed:
        """Return the head and the anchors on a device; the last one is kept."""
        if device.type == "cpu":
            return Placed(self.saved.head, self.bank)
        found = self._copies.get(device)
        if found is None:
            bank = replace(self.bank.to(device), class_ids=self.bank.class_ids)
            found = Placed(deepcopy(self.saved.head).to(device), bank)
            self._copies.clear()
            self._copies[device] = found
        return found

    @cached_property
    def _copies(self) -> dict[torch.device, Placed]:
        return {}


def read_head(source: ModelSource) -> SavedHead:
    """Read the trained head.

    Raises:
        MissingStepError: None has been trained yet.
        WorkspaceError: Its files are damaged.
        FingerprintMismatch: It was trained on another encoder's vectors.
    """
    record = source.record
    if not record.head:
        raise MissingStepError("no head has been trained yet", "Run: vlltr train lgr")
    saved = load_head(source.objects.whole("heads", record.head))
    mine = (saved.text_fp, saved.image_fp)
    theirs = (record.text_fp, record.image_fp)
    if mine != theirs:
        raise FingerprintMismatch(
            f"the head was trained on vectors of the towers {mine}, the workspace's are of {theirs}",
            "Train it again: vlltr train lgr",
        )
    return saved


def read_class_stats(source: ModelSource) -> ClassStats:
    """Read counts and sums of the classes' images, of rows whose column `images` counts observations."""
    rows = source.rows("class_stats", BESIDE_VECTORS["class_stats"])
    rows = rows.filter(pc.equal(rows["image_fp"], source.record.image_fp or "")).sort_by("class_id")
    class_ids = numbers(rows, "class_id")
    return ClassStats(class_ids, numbers(rows, "images"), source.vectors("class_stats", class_ids))
