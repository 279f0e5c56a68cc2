"""Training data of stage 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from vlltr_index.heads.moments import Moments, observation_weights, unit_correlation
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import better_kernel, fit_plda, predict
from vlltr_index.heads.text_prior import TextKernel, class_features
from vlltr_index.heads.units import number_observations
from vlltr_index.tensors import unit_rows, work_device

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Training data of stage 2.

    Attributes:
        features: Float [V, N, D], V views of N images, the plain one first, unnormalised.
        labels: Int64 [N], 0 to C - 1.
        bank: Anchors of the C classes, or of some; the others have no sentence. No image that stage 1 did not see chose
            any.
        places: Int64 [C], each class's position in the bank; -1 for one without a sentence.
        units: The group of each image, see `units_of`; in a class it is one observation, and held out as a whole.
        keys: A key of each image's content, by which groups are assigned to folds.
        unseen: Bool [N], images that stage 1 did not see, of classes that it saw; all False where it did not run.
        unseen_classes: Bool [C], classes that stage 1 did not see.
        visual_init: Rows [C, D] and biases [C] of stage 1's visual classifier, NaN biases for classes it did not see.
        logit_scale: The multiplier of the cosine.
        anchors_without: Selects anchors without the images bool [N], and returns their bank and the id of each one's
            sentence; None: `bank` is used.
        sentence_ids: The sentence of each anchor in the bank's order, if that is known.
    """

    features: Tensor
    labels: Tensor
    bank: AnchorBank
    places: Tensor
    units: Sequence[str]
    keys: Sequence[str]
    unseen: Tensor
    unseen_classes: Tensor
    visual_init: tuple[Tensor, Tensor] | None
    logit_scale: float
    anchors_without: Callable[[Tensor], tuple[AnchorBank, list[str]]] | None = None
    sentence_ids: Sequence[str] = ()

    @property
    def classes(self) -> int:
        """Number of classes, C."""
        return len(self.places)

    @cached_property
    def observations(self) -> Tensor:
        """Number of each image's observation, int64 [N]: the images of a unit that are of one class have the same."""
        return number_observations(self.labels, self.units)

    @cached_property
    def unit_correlation(self) -> float:
        """How alike the images of an observation are, see `moments.unit_correlation`."""
        return unit_correlation(unit_rows(self.features[0]), self.labels, self.observations, self.classes)

    @cached_property
    def weights(self) -> Tensor:
        """As what share of an observation each image counts, float64 [N], see `moments.observation_weights`."""
        return observation_weights(self.observations, self.unit_correlation)

    @property
    def has_text(self) -> bool:
        """Whether any class has a sentence."""
        return bool((self.places >= 0).any())

    @property
    def reads_text(self) -> bool:
        """Whether any sentence has a vector other than zeros."""
        return self.has_text and not self.bank.is_blank

    @property
    def rows(self) -> Tensor:
        """Classes with a row in the visual classifier, bool [C]: all but those that stage 1 did not see."""
        seen = ~self.unseen_classes
        return seen if self.visual_init is None else seen & self.visual_init[1].isfinite()

    def placed(self) -> TrainingSet:
        """Return the data with its vectors on the device of `work_device`; labels and masks stay on the CPU."""
        device = work_device(self.features)
        return replace(self, features=self.features.to(device), bank=self.bank.to(device))

    @cached_property
    def kernel(self) -> TextKernel | None:
        """How alike texts are to those of the classes, see there; None where there are few, or their words unknown.

        It knows the readings of the sentences where they tell more than vectors and words alone.
        """
        if not self.has_text:
            return None
        plain = TextKernel.of(self.bank, with_readings=False)
        if plain is None or self.bank.readings is None:
            return plain
        reading = TextKernel.of(self.bank)
        assert reading is not None
        one, other = ((kernel, self._to_fit(self.anchored(kernel))) for kernel in (reading, plain))
        return better_kernel(self.moments(torch.ones_like(self.unseen)), one, other)

    @cached_property
    def prototypes(self) -> Tensor:
        """Texts of the classes by their anchors, float32 [C, T], see `class_features`; zeros for one without."""
        return self.anchored(self.kernel)

    def selected_without(self, out: Tensor) -> Self:
        """Return the data with anchors that were selected without the images `out`, bool [N].

        Vectors of zeros are selected by the order of the sentences, whatever the images are.
        """
        if not self.reads_text or self.anchors_without is None:
            return self
        bank, sentence_ids = self.anchors_without(out)
        return replace(self, bank=bank.to(self.features.device), sentence_ids=sentence_ids)

    def anchored(self, kernel: TextKernel | None) -> Tensor:
        """Compute `class_features` of the anchors of each class, float32 [C, T]; zeros for one without."""
        told = self.places >= 0
        if not bool(told.any()):
            return torch.zeros(self.classes, self.features.shape[2], device=self.features.device)
        found = class_features(self.bank, kernel)
        rows = found.new_zeros(self.classes, found.shape[1])
        rows[told] = found[self.places[told]]
        return rows

    def _to_fit(self, texts: Tensor) -> Tensor:
        """Return texts [C, T], zeros for classes that stage 1 did not see: they tell how far to trust later ones."""
        return torch.where(self.unseen_classes[:, None].to(texts.device), 0.0, texts)

    def moments(self, rest: Tensor) -> Moments:
        """Measure the moments of the images `rest`, bool [N]."""
        units = self.observations[rest].unique(return_inverse=True)[1]
        images = unit_rows(self.features[:, rest])
        return Moments.of(images, self.labels[rest], units, self.classes, self.unit_correlation)

    def model(self, moments: Moments, shrinkage: float) -> PLDA:
        """Fit the PLDA by moments of images and the classes' texts."""
        fitted = fit_plda(moments, self._to_fit(self.prototypes), shrinkage, self.kernel)
        return replace(fitted, predicted=predict(fitted.shared, self.prototypes.to(fitted.sums.device)))
