"""Training data of stage 2, and whether the texts in it match the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from vlltr_index.heads.moments import Moments, class_sums, observation_weights, unit_correlation
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import better_kernel, fit_model
from vlltr_index.heads.text_prior import TextKernel, class_features
from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import SHRINKAGES
from vlltr_index.tensors import unit_rows, work_device

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank

_PERMUTATIONS = 99
_FEWEST_TO_MATCH = 5
_MOST_PAIRED = 2048  # classes of which all pairs are compared


@dataclass(frozen=True, eq=False)
class StageTwoData:
    """Training data of stage 2.

    Attributes:
        features: Float [V, N, D], V views of N images, the plain one first, unnormalised.
        labels: Int64 [N], 0 to C - 1.
        bank: Anchors of the C classes, or of some; the others have no sentence. No image that stage 1 did not see chose
            any.
        places: Int64 [C], each class's position in the bank; -1 for one without a sentence.
        units: The name of each image's unit, see `units_of`; in a class it is one observation, and held out as a whole.
        unseen: Bool [N], images that stage 1 did not see, of classes that it saw; all False where it did not run.
        unseen_classes: Bool [C], classes that stage 1 did not see.
        visual_init: Rows [C, D] and biases [C] of stage 1's visual classifier, NaN biases for classes it did not see.
        logit_scale: The multiplier of the cosine.
        whole_texts: Returns `class_features` of all sentences of each class, selected or not, for a kernel or none,
            float32 [C, T]; None: the bank has all.
        anchors_without: Selects anchors without the images bool [N], and returns their bank; None: `bank` is used.
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
    whole_texts: Callable[[TextKernel | None], Tensor] | None = None
    anchors_without: Callable[[Tensor], AnchorBank] | None = None

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
        """Whether a text tower has read the sentences; without one their vectors are zeros."""
        return self.has_text and not self.bank.without_text_tower

    @property
    def rows(self) -> Tensor:
        """Classes with a row in the visual classifier, bool [C]: all but those that stage 1 did not see."""
        seen = ~self.unseen_classes
        return seen if self.visual_init is None else seen & self.visual_init[1].isfinite()

    def placed(self) -> StageTwoData:
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

    def whole_prototypes(self, kernel: TextKernel | None) -> Tensor:
        """Compute `class_features` of all sentences of each class, selected or not, float32 [C, T]."""
        if self.whole_texts is None:
            return self.anchored(kernel)
        found = self.whole_texts(kernel if kernel is None else kernel.to("cpu")).to(self.features.device)
        return torch.where((self.places >= 0)[:, None].to(found.device), found, 0.0)

    def selected_without(self, out: Tensor) -> Self:
        """Return the data with anchors that were selected without the images `out`, bool [N]."""
        if not self.has_text or self.anchors_without is None:
            return self
        return replace(self, bank=self.anchors_without(out).to(self.features.device))

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

    def model(self, moments: Moments, shrinkage: float | None = SHRINKAGES[0]) -> PLDA:
        """Fit the generative model by moments of images and the classes' prototypes."""
        fitted = fit_model(moments, self._to_fit(self.prototypes), shrinkage, self.kernel)
        return replace(fitted, prototypes=self.prototypes[:, : fitted.prototypes.shape[1]])


def text_matches(data: StageTwoData) -> bool | None:
    """Test whether texts lie nearer to their own classes' images than permuted ones; None for too few classes.

    The statistic is the sum over the classes of the inner product of the mean image and the mean sentence, both less
    their means over the classes; it has to exceed those of 95 % of 99 permutations. All sentences count, for anchors
    were selected by the images.

    Without a text tower the two have no space in common. Then the statistic is the sum over all pairs of classes of the
    product of how alike their mean images are and how alike their texts are by words and readings, each an inner
    product less its means (the Hilbert-Schmidt independence criterion; Gretton et al. 2005).

    Too few are fewer than 5 with images and texts; without a text tower also fewer than 10 with texts.
    """
    counts, sums = class_sums(unit_rows(data.features[0]), data.labels, data.classes)
    at = ((counts > 0).cpu() & (data.places >= 0)).nonzero()[:, 0]
    if len(at) < _FEWEST_TO_MATCH:
        return None
    if data.reads_text:
        text = data.whole_prototypes(None)[at].double()
    else:
        kernel = TextKernel.of(data.bank)
        if kernel is None:
            return None
        at = at[torch.linspace(0, len(at) - 1, min(len(at), _MOST_PAIRED)).long()]
        text = data.whole_prototypes(kernel)[at, data.bank.dim :].double()
    text = text - text.mean(0)
    means = sums[at] / counts[at][:, None]
    means = means - means.mean(0)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(len(at), generator=generator) for _ in range(_PERMUTATIONS)]
    orders = [order.to(means.device) for order in (torch.arange(len(at)), *drawn)]
    if data.reads_text:
        agreement = means @ text.T
        found = [agreement.gather(1, order[:, None]).sum() for order in orders]
    else:
        seen, told = (rows @ rows.T for rows in (means, text))
        found = [(seen * told[order][:, order]).sum() for order in orders]
    own, *others = (float(value) for value in found)
    return sum(other < own for other in others) >= 0.95 * _PERMUTATIONS


def with_matching_text(data: StageTwoData) -> tuple[StageTwoData, bool | None]:
    """Remove all text from the data where `text_matches` denies a match; return the data and the test's outcome."""
    matches = text_matches(data)
    if matches is False:
        data = replace(data, places=torch.full_like(data.places, -1))
    return data, matches
